# SPDX-License-Identifier: Apache-2.0
"""How fast weights go from one process to another on this machine, each step beside the limit that it could reach.

Run as ``python -m tandem_handoff.bench``; `tandem bench handoff` shows the same as a table.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

import torch

from tandem_handoff.exporter import Exporter
from tandem_handoff.importer import Importer
from tandem_handoff.manifest import Verify
from tandem_handoff.segments import allocate, attach

Tensors = list[tuple[str, torch.Tensor]]
_TIMEOUT = 300.0


class Use(StrEnum):
    """What the receiving process does with the tensors."""

    LOOK = "look"
    """Nothing: what is left is Tandem's own work."""
    LOAD = "load"
    """Copies them into parameters of its own, as an engine without repacking does."""


_HANDOFFS = (
    ("handoff", Verify.NAMES, Use.LOOK),
    ("handoff, checksums", Verify.CHECKSUMS, Use.LOOK),
    ("handoff, receiver copies too", Verify.NAMES, Use.LOAD),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One measurement.

    Attributes:
        name: what was done.
        seconds: median over the rounds.
        nbytes: bytes moved, or 0 where the time does not depend on them.
        limit: what it is compared with.
        of_limit: the limit's seconds by its own; the median over rounds that measured both side by side.
    """

    name: str
    seconds: float
    nbytes: int
    limit: str | None = None
    of_limit: float | None = None

    @property
    def rate(self) -> float | None:
        """GB/s."""
        return self.nbytes / self.seconds / 1e9 if self.nbytes else None


def transformer_like(nbytes: int, device: torch.device, hidden: int = 1024) -> Tensors:
    """bfloat16 tensors of about `nbytes` in all: an embedding, and layers of four square, three wide matrices and two
    norms. Their content is finite and repeats after 4 MiB.
    """
    noise = torch.randn(2**21, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    matrices: list[tuple[str, tuple[int, ...]]] = [(f"{name}_proj.weight", (hidden, hidden)) for name in "qkvo"]
    matrices += [(f"{name}_proj.weight", (3 * hidden, hidden)) for name in ("gate", "up", "down")]
    layer = [*matrices, ("input_layernorm.weight", (hidden,)), ("post_attention_layernorm.weight", (hidden,))]
    shapes: list[tuple[str, tuple[int, ...]]] = [("embed_tokens.weight", (8 * hidden, hidden))]
    left = nbytes - 16 * hidden**2
    while left > 0:
        shapes += [(f"layers.{len(shapes)}.{name}", shape) for name, shape in layer]
        left -= 26 * hidden**2
    return [(name, filled(shape, noise)) for name, shape in shapes]


class Receiver:
    """The engine's end, in a process of its own. Close it; it is a context."""

    def __init__(self, socket_path: Path, device: torch.device) -> None:
        context = multiprocessing.get_context("spawn")
        self._commands, theirs = context.Pipe()
        self._process = context.Process(target=_receive, args=(theirs, str(socket_path), str(device)), daemon=True)
        self._process.start()
        theirs.close()
        self._commands.recv()

    def receive(self, version: int, use: Use) -> None:
        """Starts to receive a version; `seconds` says how long its own work took."""
        self._commands.send((version, use))

    def seconds(self) -> float:
        """Waits for the end of the version; seconds that this process spent in `Use`."""
        answer = self._commands.recv()
        if isinstance(answer, str):
            raise RuntimeError(f"the receiving process failed: {answer}")
        return float(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._commands.close()
        self._process.join(10)
        self._process.kill()


@contextmanager
def _pair(device: torch.device, bucket: int, verify: Verify) -> Iterator[tuple[Exporter, Receiver]]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "handoff-0.sock"
        with Exporter(path, bucket, device, verify) as exporter, Receiver(path, device) as receiver:
            yield exporter, receiver


class Handoff:
    """Hands the same tensors over, again and again."""

    def __init__(self, exporter: Exporter, receiver: Receiver, tensors: Tensors, use: Use) -> None:
        self._exporter, self._receiver, self._tensors, self._use = exporter, receiver, tensors, use
        self._version = 0

    def __call__(self) -> float:
        """Seconds from the export's start to its confirmation."""
        self._version += 1
        self._receiver.receive(self._version, self._use)
        began = time.perf_counter()
        self._exporter.export(self._version, self._tensors, _TIMEOUT)
        seconds = time.perf_counter() - began
        self._receiver.seconds()
        return seconds


def measure(device: torch.device, nbytes: int, bucket: int, rounds: int) -> Iterator[Step]:
    """All steps, one after the other.

    Args:
        device: "cpu" or "cuda:N", for both processes.
        nbytes: of the model.
        bucket: bytes of a bucket.
        rounds: measurements of each step; one more comes first and does not count.
    """
    tensors = transformer_like(nbytes, device)
    moved = sum(tensor.nbytes for _, tensor in tensors)
    targets = [torch.empty_like(tensor) for _, tensor in tensors]

    def copy() -> float:
        return _seconds(lambda: _copy(tensors, targets), device)

    limit = "one copy within a process"
    yield Step(limit, statistics.median(_rounds(copy, rounds)), moved)
    yield Step("one copy into fresh memory", statistics.median(_rounds(lambda: _anew(tensors), 2)), moved)
    for name, verify, use in _HANDOFFS:
        with _pair(device, bucket, verify) as (exporter, receiver):
            yield compared(name, Handoff(exporter, receiver, tensors, use), moved, limit, copy, rounds)
    yield Step("first use of a bucket", statistics.median(_rounds(lambda: _mapped(device, bucket), 5)), 0)
    with _pair(device, bucket, Verify.NAMES) as (exporter, receiver):
        nothing = Handoff(exporter, receiver, [("norm", tensors[-1][1])], Use.LOOK)
        yield Step("handoff of one small tensor", statistics.median(_rounds(nothing, 5 * rounds)), 0)
    if device.type == "cuda":
        yield from _over_pcie(tensors, moved, device, rounds)


def compared(
    name: str, action: Callable[[], float], nbytes: int, limit: str, reference: Callable[[], float], rounds: int
) -> Step:
    """The action beside its limit, by turns, since what else a machine does changes from second to second."""
    action(), reference()
    pairs = [(action(), reference()) for _ in range(rounds)]
    ratios = [limit_seconds / seconds for seconds, limit_seconds in pairs]
    return Step(name, statistics.median(pair[0] for pair in pairs), nbytes, limit, statistics.median(ratios))


def _over_pcie(tensors: Tensors, nbytes: int, device: torch.device, rounds: int) -> Iterator[Step]:
    """Off the device and back, through pinned memory: the limit of a trainer that makes room for the engine."""
    pinned = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for _, tensor in tensors]

    def off() -> None:
        for (_, tensor), place in zip(tensors, pinned, strict=True):
            place.copy_(tensor, non_blocking=True)

    def back() -> None:
        for (_, tensor), place in zip(tensors, pinned, strict=True):
            tensor.copy_(place, non_blocking=True)

    moves: dict[str, Callable[[], None]] = {"off the device into pinned memory": off, "back from pinned memory": back}
    for name, move in moves.items():
        yield Step(name, statistics.median(_rounds(partial(_seconds, move, device), rounds)), nbytes)


def _copy(tensors: Tensors, targets: list[torch.Tensor]) -> None:
    for (_, tensor), target in zip(tensors, targets, strict=True):
        target.copy_(tensor)


def _anew(tensors: Tensors) -> float:
    device = tensors[0][1].device
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return _seconds(lambda: [tensor.clone() for _, tensor in tensors], device)


def _mapped(device: torch.device, nbytes: int) -> float:
    began = time.perf_counter()
    segment = allocate(device, nbytes)
    with segment.descriptor() as descriptor:
        other = attach(device, segment.identity, nbytes, os.dup(descriptor))
    other.tensor()[0] = 1
    other.enqueued().synchronize()
    return time.perf_counter() - began


def _rounds(action: Callable[[], float], rounds: int) -> list[float]:
    action()
    return [action() for _ in range(rounds)]


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def filled(shape: tuple[int, ...], noise: torch.Tensor) -> torch.Tensor:
    """A tensor of the noise's dtype and device that repeats it; drawing as much would take far longer."""
    tensor = torch.empty(shape, dtype=noise.dtype, device=noise.device)
    for piece in tensor.view(-1).split(noise.numel()):
        piece.copy_(noise[: piece.numel()])
    return tensor


def _receive(commands: Connection, socket_path: str, device: str) -> None:
    """The receiving process."""
    torch.set_num_threads(1)
    importer = Importer(socket_path, torch.device(device))
    parameters: dict[str, torch.Tensor] = {}
    commands.send("ready")
    while True:
        try:
            version, use = commands.recv()
        except EOFError:
            importer.close()
            return
        spent = 0.0
        try:
            for tensors in importer.receive(version, _TIMEOUT):
                began = time.perf_counter()
                if use is Use.LOAD:
                    _load(tensors, parameters)
                spent += time.perf_counter() - began
            commands.send(spent)
        except Exception as error:
            commands.send(f"{type(error).__name__}: {error}")
            raise


def _load(tensors: Tensors, parameters: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors:
        if name not in parameters:
            parameters[name] = torch.empty_like(tensor)
        parameters[name].copy_(tensor)


def main() -> None:
    """Prints a JSON object a step, then the peak of memory."""
    parser = argparse.ArgumentParser(prog="python -m tandem_handoff.bench", description=__doc__)
    parser.add_argument("--mib", type=int, default=512, help="size of the model")
    parser.add_argument("--bucket-mib", type=int, default=64, help="size of a bucket")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each step")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu", help="cpu or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="threads of the sending process, on a CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    for step in measure(device, options.mib * 2**20, options.bucket_mib * 2**20, options.rounds):
        print(json.dumps(asdict(step)), flush=True)


if __name__ == "__main__":
    main()
