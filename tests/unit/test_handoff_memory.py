# SPDX-License-Identifier: Apache-2.0
"""A handoff takes two buckets of memory, whatever the model's size, and gives back what a broken one held."""

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from handoff_peers import forget_peak, looking_peer, memory, open_descriptors, shared_memory

from tandem_handoff import Exporter, HandoffError, Importer, Verify

TIMEOUT = 240.0
MIB = 2**20
BUCKET = 16 * MIB
PART = torch.ones(MIB // 4)


def model(mib: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of 1 MiB that take no memory of their own."""
    for number in range(mib):
        yield f"t{number}", PART


@pytest.mark.parametrize("verify", list(Verify))
@pytest.mark.parametrize("mib", [64, 512])
def test_both_ends_together_take_two_buckets_and_five_percent(tmp_path: Path, verify: Verify, mib: int) -> None:
    path = tmp_path / "handoff-0.sock"
    mapped = memory()["RssShmem"]  # what libraries that other tests used have mapped in this process
    with Exporter(path, BUCKET, verify=verify) as exporter, looking_peer(path) as peer:
        peer.tell(1, TIMEOUT, None)
        exporter.export(1, [("warm", PART)], TIMEOUT)  # imports, threads and buffers of the first use
        peer.reply()
        gc.collect()
        ends = ("self", peer.process.pid)
        for pid in ends:
            forget_peak(pid)
        before = {pid: memory(pid) for pid in ends}
        peer.tell(2, TIMEOUT, None)
        exporter.export(2, model(mib), TIMEOUT)
        peer.reply()
        after = {pid: memory(pid) for pid in ends}
        # The pages of the segments are mapped by both and exist once; what else either took is its own.
        shared = max(after["self"]["RssShmem"] - mapped, after[peer.process.pid]["RssShmem"])
        own = sum(
            after[pid]["VmHWM"] - before[pid]["VmHWM"] - (after[pid]["RssShmem"] - before[pid]["RssShmem"])
            for pid in ends
        )
        print(f"{mib} MiB, {verify}: {shared / MIB:.1f} MiB shared, {own / MIB:.2f} MiB else")
        assert shared <= 2 * BUCKET
        assert shared + own <= 2 * BUCKET * 1.05


def test_a_thousand_handoffs_broken_in_every_way_leak_nothing(tmp_path: Path) -> None:
    path = tmp_path / "handoff-0.sock"
    importer = Importer(path)
    with Exporter(path, 4 * MIB) as exporter, ThreadPoolExecutor(2) as pool:
        cycle = _Cycles(exporter, importer, pool, path)
        for number in range(100):
            cycle.run(number)
        gc.collect()
        before = held(), open_descriptors(), shared_memory()
        for number in range(1000):
            cycle.run(number)
        gc.collect()
        after = held(), open_descriptors(), shared_memory()
        print(f"{before[0] / MIB:.1f} -> {after[0] / MIB:.1f} MiB, {cycle.broken} of 1100 broken")
        assert cycle.broken >= 800
        assert after[1] == before[1]
        assert len(after[2]) == len(before[2]) == 2
        # A bucket lost in each would be 4 GiB, an object of a page 4 MiB.
        assert after[0] - before[0] < 4 * MIB


def held() -> int:
    """Bytes of this process that are no file's: the kernel takes and gives those as it likes."""
    found = memory()
    return found["RssAnon"] + found["RssShmem"]


class _Cycles:
    """One handoff after the other, all but one of six broken in one way or another."""

    def __init__(self, exporter: Exporter, importer: Importer, pool: ThreadPoolExecutor, path: Path) -> None:
        self._exporter, self._importer, self._pool, self._path = exporter, importer, pool, path
        self.broken = 0

    def run(self, number: int) -> None:
        if number % 100 == 50:
            self._engine_dies(number)
            return
        kind = number % 6
        wanted = number + 1 if kind == 1 else number
        sent = self._pool.submit(self._exporter.export, number, self._tensors(kind), TIMEOUT)
        received = self._pool.submit(self._receive, wanted, kind)
        failed = [outcome.exception() is not None for outcome in (sent, received)]
        self.broken += any(failed)
        assert all(failed) == any(failed) == (kind != 0)

    def _tensors(self, kind: int) -> Iterator[tuple[str, torch.Tensor]]:
        yield from model(5)
        if kind == 2:
            raise RuntimeError("the gather failed")
        if kind == 3:
            yield "t0", PART  # twice
        if kind == 4:
            yield "complex", torch.zeros(3, dtype=torch.complex64)

    def _receive(self, version: int, kind: int) -> None:
        for _ in self._importer.receive(version, TIMEOUT):
            if kind == 5:
                self._importer.abort("the engine gave up")

    def _engine_dies(self, number: int) -> None:
        with looking_peer(self._path) as peer:
            peer.tell(number, TIMEOUT, 1)
            with pytest.raises(HandoffError):
                self._exporter.export(number, model(12), TIMEOUT)
            assert peer.ended() == 9
        self.broken += 1
