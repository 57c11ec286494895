# SPDX-License-Identifier: Apache-2.0
"""Tensors arrive as they were sent, and memory is used over and over."""

import gc
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from handoff_peers import Peer, contents, importing_peer, open_descriptors, shared_memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tandem_handoff import Exporter, Verify, drain
from tandem_handoff.manifest import ALIGNMENT, DTYPES
from tandem_handoff.segments import MemfdSegment

TIMEOUT = 240.0


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("handoff") / "handoff-0.sock"


@pytest.fixture(scope="module")
def peer(socket_path: Path) -> Iterator[Peer]:
    with importing_peer(socket_path) as peer:
        yield peer


def random_tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    return torch.randint(0, 2, shape).to(dtype)


@pytest.mark.parametrize("verify", list(Verify))
def test_every_dtype_arrives_bit_for_bit(socket_path: Path, peer: Peer, verify: Verify) -> None:
    tensors = [(f"layer.{name}", random_tensor(dtype, 3, 5, 7)) for name, dtype in DTYPES.items()]
    peer.tell(1, TIMEOUT, None)
    with Exporter(socket_path, 4096, verify=verify) as exporter:
        manifest = exporter.export(1, tensors, TIMEOUT)
    received = peer.reply()
    assert received.tensors == contents(tensors)
    assert received.manifest.digest == manifest.digest
    assert manifest.nbytes == sum(tensor.nbytes for _, tensor in tensors)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3), max_size=12),
    bucket_bytes=st.integers(ALIGNMENT, 20_000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int8]),
    verify=st.sampled_from(list(Verify)),
)
def test_any_shapes_arrive_through_buckets_of_any_size(
    socket_path: Path, peer: Peer, shapes: list[list[int]], bucket_bytes: int, dtype: torch.dtype, verify: Verify
) -> None:
    tensors = [(f"t{index}", random_tensor(dtype, *shape)) for index, shape in enumerate(shapes)]
    peer.tell(2, TIMEOUT, None)
    with Exporter(socket_path, bucket_bytes, verify=verify) as exporter:
        manifest = exporter.export(2, tensors, TIMEOUT)
    received = peer.reply()
    assert received.tensors == contents(tensors)
    assert [entry.name for entry in received.manifest.entries] == [name for name, _ in tensors]
    for bucket in manifest.buckets:
        assert bucket.capacity == bucket_bytes or len(bucket.entries) >= 1
        assert all(entry.offset + entry.nbytes <= bucket.capacity for entry in bucket.entries)


def test_views_with_strides_and_offsets_arrive_contiguous(socket_path: Path, peer: Peer) -> None:
    base = torch.randn(9, 11)
    tensors = [
        ("transposed", base.t()),
        ("row", base[3]),
        ("column", base[:, 5]),
        ("odd", base.to(torch.bfloat16)[1, 1:]),
    ]
    peer.tell(3, TIMEOUT, None)
    with Exporter(socket_path, 4096, verify=Verify.CHECKSUMS) as exporter:
        exporter.export(3, tensors, TIMEOUT)
    assert peer.reply().tensors == contents(tensors)


def test_a_tensor_larger_than_a_bucket_grows_it_and_the_manifest_says_so(socket_path: Path, peer: Peer) -> None:
    tensors = [("small", torch.randn(10)), ("large", torch.randn(5000)), ("last", torch.randn(10))]
    peer.tell(4, TIMEOUT, None)
    with Exporter(socket_path, 1024) as exporter:
        manifest = exporter.export(4, tensors, TIMEOUT)
    assert peer.reply().tensors == contents(tensors)
    assert {bucket.entries[0].name: bucket.capacity > 1024 for bucket in manifest.buckets} == {
        "small": False,
        "large": True,
        "last": False,
    }


def test_the_digest_depends_on_version_names_and_content_but_not_on_packing(socket_path: Path, peer: Peer) -> None:
    tensors = [("a", torch.arange(100.0)), ("b", torch.ones(50))]
    changed = [("a", torch.arange(100.0)), ("b", torch.ones(50).index_fill(0, torch.tensor([7]), 2.0))]

    def digest(version: int, export: list[tuple[str, torch.Tensor]], bucket_bytes: int) -> str:
        peer.tell(version, TIMEOUT, None)
        with Exporter(socket_path, bucket_bytes, verify=Verify.CHECKSUMS) as exporter:
            result: str = exporter.export(version, export, TIMEOUT).digest
        assert peer.reply().manifest.digest == result
        return result

    reference = digest(5, tensors, 256)
    assert digest(5, tensors, 4096) == reference
    assert digest(5, tensors[::-1], 4096) == reference
    assert digest(6, tensors, 4096) != reference
    assert digest(5, changed, 4096) != reference
    assert digest(5, [("c", tensors[0][1]), tensors[1]], 4096) != reference


class LateSegment(MemfdSegment):
    """Memory of a device that copies when it is waited for and not before, as a GPU may."""

    waits: list[str]

    def __init__(self, identity: str, nbytes: int, descriptor: int) -> None:
        super().__init__(identity, nbytes, descriptor)
        self._asked_for = torch.zeros(nbytes, dtype=torch.uint8)

    def tensor(self) -> torch.Tensor:
        return self._asked_for

    def enqueued(self) -> "LateSegment":
        return self

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        super().tensor().copy_(self._asked_for)
        self.waits.append("wait")


def test_a_device_fills_the_next_bucket_before_the_copies_into_the_last_are_waited_for(
    socket_path: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_handoff.exporter.allocate", lambda device, nbytes: LateSegment.allocate(nbytes))
    order: list[str] = []
    monkeypatch.setattr(LateSegment, "waits", order, raising=False)
    tensors = [(name, torch.randn(128)) for name in ("0a", "0b", "1a", "1b", "2a", "2b")]

    def gather() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in tensors:
            order.append(name)
            yield name, tensor

    peer.tell(7, TIMEOUT, None)
    with Exporter(socket_path, 1024) as exporter:
        exporter.export(7, gather(), TIMEOUT)
    assert peer.reply().tensors == contents(tensors), "the importer was told of a bucket that was not filled yet"
    assert order == ["0a", "0b", "1a", "1b", "2a", "wait", "2b", "wait", "wait"]


def test_two_hundred_versions_reuse_the_same_memory_and_leave_no_descriptor(socket_path: Path, peer: Peer) -> None:
    tensors = [(f"t{index}", torch.randn(300)) for index in range(8)]
    with Exporter(socket_path, 4096) as exporter:
        gc.collect()  # what earlier tests left in exceptions
        states = []
        for version in range(200):
            peer.tell(version, TIMEOUT, None)
            exporter.export(version, tensors, TIMEOUT)
            received = peer.reply()
            if version in (0, 199):
                states.append((shared_memory(), open_descriptors(), received.descriptors))
        assert states[0] == states[1]
        assert len(states[0][0]) == 2, "two buckets, whatever the number of tensors"
        assert received.tensors == contents(tensors)
    assert not shared_memory()


def test_a_new_trainer_frees_the_memory_of_the_one_before(socket_path: Path, peer: Peer) -> None:
    counts = []
    for version in range(5):
        peer.tell(version, TIMEOUT, None)
        with Exporter(socket_path, 4096) as exporter:
            exporter.export(version, [("t", torch.randn(100))], TIMEOUT)
        counts.append(peer.reply().descriptors)
    assert len(set(counts)) == 1


def test_drain_consumes_every_tensor() -> None:
    consumed = []

    def gather() -> Iterator[tuple[str, torch.Tensor]]:
        for index in range(4):
            consumed.append(index)
            yield str(index), torch.zeros(1)

    drain(gather())
    assert consumed == [0, 1, 2, 3]


def test_a_socket_left_by_a_dead_trainer_is_replaced(socket_path: Path, peer: Peer) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path))
    peer.tell(1, TIMEOUT, None)
    with Exporter(socket_path, 4096) as exporter:
        exporter.export(1, [("t", torch.ones(3))], TIMEOUT)
    assert peer.reply().tensors == contents([("t", torch.ones(3))])
