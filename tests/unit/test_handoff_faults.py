# SPDX-License-Identifier: Apache-2.0
"""Whatever goes wrong in a handoff, both ends say what it was, leak nothing, and complete the next one."""

import contextlib
import fcntl
import gc
import json
import os
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from handoff_peers import (
    REPLY_SECONDS,
    contents,
    counting,
    exchange,
    exporting_peer,
    importing_peer,
    memory,
    open_descriptors,
    receive_all,
    shared_memory,
)

from tandem_handoff import (
    DeadlineExceededError,
    Expected,
    Exporter,
    HandoffError,
    Importer,
    PeerLostError,
    PeerRefusedError,
    ProtocolError,
    ResourceLimitError,
    StaleStreamError,
    TensorRefusedError,
    Verify,
    VersionMismatchError,
)
from tandem_handoff.channel import Channel

Tensors = list[tuple[str, torch.Tensor]]
TIMEOUT = REPLY_SECONDS
BUCKET = 1024
LENGTHS = {f"t{index}": 100 for index in range(6)}


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "handoff-0.sock"


@pytest.fixture
def tensors() -> Tensors:
    """Six tensors in three buckets."""
    return [(f"t{index}", counting(100)) for index in range(6)]


@pytest.mark.parametrize("bucket", [0, 1, 2])
def test_the_trainer_survives_an_engine_that_dies_in_any_bucket(
    socket_path: Path, tensors: Tensors, bucket: int
) -> None:
    with Exporter(socket_path, BUCKET) as exporter:
        with importing_peer(socket_path) as peer:
            peer.tell(1, TIMEOUT, bucket)
            with pytest.raises(PeerLostError):
                exporter.export(1, tensors, TIMEOUT)
            assert peer.ended() == 9
        descriptors = open_descriptors()
        for version in (2, 3):
            with importing_peer(socket_path) as peer:
                peer.tell(version, TIMEOUT, None)
                exporter.export(version, tensors, TIMEOUT)
                assert peer.reply().tensors == contents(tensors)
        assert open_descriptors() <= descriptors


@pytest.mark.parametrize("tensor", [0, 1, 3, 6])
def test_the_engine_survives_a_trainer_that_dies_at_any_tensor(
    socket_path: Path, tensors: Tensors, tensor: int
) -> None:
    importer = Importer(socket_path)
    with exporting_peer(socket_path, BUCKET) as peer:
        peer.tell(1, LENGTHS, TIMEOUT, tensor)
        with pytest.raises(PeerLostError):
            receive_all(importer, 1)
        assert peer.ended() == 9
    assert importer.manifest is None
    descriptors = open_descriptors()
    with exporting_peer(socket_path, BUCKET) as peer:
        peer.tell(2, LENGTHS, TIMEOUT, None)
        assert receive_all(importer, 2) == contents(tensors)
    importer.close()
    assert open_descriptors() <= descriptors


def test_a_gather_is_completed_when_the_engine_is_lost_since_other_ranks_wait_in_it(
    socket_path: Path, tensors: Tensors
) -> None:
    gathered = []

    def gather() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in tensors:
            gathered.append(name)
            yield name, tensor

    with Exporter(socket_path, BUCKET) as exporter, pytest.raises(DeadlineExceededError, match="importer"):
        exporter.export(1, gather(), 0.1)
    assert gathered == [name for name, _ in tensors]


def test_an_error_of_the_gather_reaches_both_sides(socket_path: Path, tensors: Tensors) -> None:
    def gather() -> Iterator[tuple[str, torch.Tensor]]:
        yield from tensors[:4]
        raise RuntimeError("rank 3 is out of memory")

    importer = Importer(socket_path)
    with Exporter(socket_path, BUCKET) as exporter, ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive_all, importer, 1)
        with pytest.raises(RuntimeError, match="rank 3"):
            exporter.export(1, gather(), TIMEOUT)
        with pytest.raises(PeerRefusedError, match="rank 3 is out of memory"):
            received.result()
        assert exchange(exporter, importer, tensors)[1] == contents(tensors)


def test_an_engine_that_stops_loading_lets_the_trainer_go_at_once(socket_path: Path, tensors: Tensors) -> None:
    importer = Importer(socket_path)

    def load() -> None:
        for _ in importer.receive(1, TIMEOUT):
            importer.abort("layer 3 does not fit")

    with Exporter(socket_path, BUCKET) as exporter, ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        with pytest.raises(PeerRefusedError, match="layer 3 does not fit"):
            exporter.export(1, tensors, TIMEOUT)
        with pytest.raises(HandoffError):
            loading.result()
        assert exchange(exporter, importer, tensors)[1] == contents(tensors)


def test_different_versions_are_refused_by_both(socket_path: Path, tensors: Tensors) -> None:
    importer = Importer(socket_path)
    with Exporter(socket_path, BUCKET) as exporter:
        sent, received = exchange(exporter, importer, tensors, version=8, wanted=7)
        assert isinstance(sent, VersionMismatchError)
        assert isinstance(received, VersionMismatchError)
        assert (received.wanted, received.offered) == (7, 8)
        assert exchange(exporter, importer, tensors)[1] == contents(tensors)


def test_an_importer_that_gave_up_while_it_waited_is_passed_over(socket_path: Path, tensors: Tensors) -> None:
    importer = Importer(socket_path)
    with Exporter(socket_path, BUCKET) as exporter:
        with pytest.raises(DeadlineExceededError):
            receive_all(importer, 1, timeout=0.05)
        assert exchange(exporter, importer, tensors, version=2, wanted=2)[1] == contents(tensors)


def test_an_importer_that_comes_before_the_trainer_waits_for_it(socket_path: Path, tensors: Tensors) -> None:
    importer = Importer(socket_path)
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive_all, importer, 1)
        with Exporter(socket_path, BUCKET) as exporter:
            exporter.export(1, tensors, TIMEOUT)
        assert received.result() == contents(tensors)


EXPECTED = {f"t{index}": Expected((100,)) for index in range(6)}


@pytest.mark.parametrize(
    ("change", "tensor", "reason"),
    [
        (lambda items: items[:2] + items[3:], "t2", "missing"),
        (lambda items: [*items, ("t6", torch.zeros(1))], "t6", "no such tensor"),
        (
            lambda items: [("q" + name if name == "t4" else name, tensor) for name, tensor in items],
            "qt4",
            "no such tensor",
        ),
        (lambda items: [(name, tensor[:99] if name == "t5" else tensor) for name, tensor in items], "t5", r"\[99\]"),
        (
            lambda items: [(name, tensor.view(10, 10) if name == "t1" else tensor) for name, tensor in items],
            "t1",
            "shape",
        ),
        (lambda items: [(name, tensor * torch.nan if name == "t3" else tensor) for name, tensor in items], "t3", "NaN"),
        (lambda items: [(name, tensor / 0 if name == "t0" else tensor) for name, tensor in items], "t0", "infinity"),
    ],
    ids=["missing", "extra", "renamed", "short", "reshaped", "nan", "infinite"],
)
def test_a_wrong_tensor_is_refused_by_its_name(
    socket_path: Path, tensors: Tensors, change: Callable[[Tensors], Tensors], tensor: str, reason: str
) -> None:
    importer = Importer(socket_path)
    with Exporter(socket_path, BUCKET, verify=Verify.CHECKSUMS) as exporter:
        sent, received = exchange(exporter, importer, change(tensors), expected=EXPECTED)
        assert isinstance(received, TensorRefusedError)
        assert received.tensor == tensor
        assert isinstance(sent, PeerRefusedError)
        with pytest.raises(TensorRefusedError, match=reason):
            raise received
        assert tensor in str(sent)
        assert importer.manifest is None
        assert exchange(exporter, importer, tensors, expected=EXPECTED)[1] == contents(tensors)


def test_a_name_that_the_trainer_yields_twice_is_refused(socket_path: Path, tensors: Tensors) -> None:
    with Exporter(socket_path, BUCKET) as exporter:
        sent, received = exchange(exporter, Importer(socket_path), [*tensors, tensors[0]])
    assert isinstance(sent, TensorRefusedError)
    assert sent.tensor == "t0"
    assert isinstance(received, PeerRefusedError)


def test_a_dtype_that_engines_do_not_know_is_refused(socket_path: Path) -> None:
    with Exporter(socket_path, BUCKET) as exporter:
        sent, _ = exchange(exporter, Importer(socket_path), [("c", torch.zeros(3, dtype=torch.complex64))])
    assert isinstance(sent, TensorRefusedError)


@pytest.mark.parametrize("bit", [0, 7, 31])
def test_one_flipped_bit_in_shared_memory_is_found(socket_path: Path, tensors: Tensors, bit: int) -> None:
    exporter = Exporter(socket_path, BUCKET, verify=Verify.CHECKSUMS)

    def corrupting() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in tensors:
            yield name, tensor
            if name == "t2":  # packed as the first of the second bucket, and not sent yet
                segment = exporter._segments[1]
                assert segment is not None
                segment.tensor()[200 + bit // 8] ^= 1 << bit % 8

    with exporter:
        _, received = exchange(exporter, Importer(socket_path), corrupting())
    assert isinstance(received, TensorRefusedError)
    assert received.tensor == "t2"


def test_a_bit_that_flips_while_it_is_loaded_is_found(socket_path: Path, tensors: Tensors) -> None:
    importer = Importer(socket_path)

    def load() -> None:
        for bucket in importer.receive(1, TIMEOUT):
            for name, tensor in bucket:
                if name == "t2":
                    tensor.view(-1).view(torch.uint8)[0] ^= 1

    with Exporter(socket_path, BUCKET, verify=Verify.CHECKSUMS) as exporter, ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        with pytest.raises(PeerRefusedError, match="'t2' is refused: its checksum is"):
            exporter.export(1, tensors, TIMEOUT)
        with pytest.raises(TensorRefusedError, match="it changed on the way"):
            loading.result()
    assert importer.manifest is None


@pytest.mark.parametrize("verify", list(Verify))
def test_a_view_is_seen_to_be_alive_until_it_is_let_go(socket_path: Path, tensors: Tensors, verify: Verify) -> None:
    importer = Importer(socket_path)
    states = []

    def load() -> None:
        for bucket in importer.receive(1, TIMEOUT):
            kept = bucket[0][1][3:5].view(2, 1)
            bucket.clear()
            states.append(importer.views_alive())
            del kept
            states.append(importer.views_alive())

    with Exporter(socket_path, BUCKET, verify=verify) as exporter, ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        exporter.export(1, tensors, TIMEOUT)
        loading.result()
    assert states == [True, False] * 3


def test_views_outlive_the_importer(socket_path: Path, tensors: Tensors) -> None:
    importer = Importer(socket_path)
    kept: Tensors = []
    with Exporter(socket_path, 2**20) as exporter, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(exporter.export, 1, tensors, TIMEOUT)
        for bucket in importer.receive(1, TIMEOUT):
            kept += bucket
        sent.result()
    importer.close()
    assert contents(kept) == contents(tensors)


Frames = Callable[[dict[str, Any]], list[bytes]]


class FakeExporter:
    """Answers an importer's hello with given frames, descriptors with the last; then it listens, or it `dies`."""

    def __init__(self, path: Path, frames: Frames, descriptors: tuple[int, ...] = (), *, dies: bool = False) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._frames = frames
        self._descriptors = list(descriptors)
        self._dies = dies
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(ConnectionError):  # the importer may give up before it has read all
            (length,) = struct.unpack("!I", connection.recv(4, socket.MSG_WAITALL))
            hello = json.loads(connection.recv(length, socket.MSG_WAITALL))
            *first, last = self._frames(hello)
            for data in first:
                connection.sendall(data)
            socket.send_fds(connection, [last], self._descriptors)
            while not self._dies and connection.recv(4096):
                pass

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        self._thread.join(TIMEOUT)
        self._listener.close()


def frame(**message: Any) -> bytes:
    body = json.dumps(message).encode()
    return struct.pack("!I", len(body)) + body


def welcome(hello: dict[str, Any], **changes: Any) -> bytes:
    message = {"type": "welcome", "version": 1, "nonce": hello["nonce"], "exporter": "e", "verify": "Names"}
    return frame(**(message | changes))


def bucket_frame(**changes: Any) -> bytes:
    entry = {"name": "t0", "dtype": "float32", "shape": [4], "offset": 0, "nbytes": 16, "checksum": None}
    message = {"type": "bucket", "index": 0, "slot": 0, "segment": "s", "capacity": 4096, "nbytes": 16}
    entries = [entry | changes.pop("entry", {})]
    return frame(**(message | {"entries": entries} | changes))


def test_a_replayed_stream_is_refused(socket_path: Path) -> None:
    with (
        FakeExporter(socket_path, lambda _: [welcome({"nonce": "of an earlier handoff"})]),
        pytest.raises(StaleStreamError),
    ):
        receive_all(Importer(socket_path), 1)


@pytest.mark.parametrize(
    "frames",
    [
        lambda hello: [b"\xff\xff\xff\xff"],
        lambda hello: [struct.pack("!I", 3) + b"{{{"],
        lambda hello: [frame(type=7)],
        lambda hello: [welcome(hello, version="1")],
        lambda hello: [welcome(hello), bucket_frame()],
        lambda hello: [welcome(hello), bucket_frame(index=1)],
        lambda hello: [welcome(hello), bucket_frame(entries=[7])],
        lambda hello: [welcome(hello), frame(type="end", digest="0")],
        lambda hello: [welcome(hello), frame(type="surprise")],
    ],
    ids=["length", "json", "type", "field", "no segment", "order", "entry", "digest", "message"],
)
def test_what_is_no_valid_message_is_refused(socket_path: Path, frames: Frames) -> None:
    with FakeExporter(socket_path, frames), pytest.raises(ProtocolError):
        receive_all(Importer(socket_path), 1)


@pytest.mark.parametrize(
    "entry",
    [
        {"offset": 4096},
        {"offset": -256},
        {"offset": 3},
        {"nbytes": 8192, "shape": [2048]},
        {"nbytes": 15},
        {"shape": [-4]},
        {"dtype": "object"},
    ],
)
def test_a_place_outside_the_segment_is_refused(socket_path: Path, entry: dict[str, Any]) -> None:
    descriptor = os.memfd_create("s", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 4096)
    seal(descriptor)
    frames = lambda hello: [welcome(hello), bucket_frame(entry=entry)]  # noqa: E731
    with FakeExporter(socket_path, frames, (descriptor,)), pytest.raises(TensorRefusedError, match="t0"):
        receive_all(Importer(socket_path), 1)
    os.close(descriptor)


def test_a_thousand_trainers_that_die_in_a_bucket_or_replay_an_old_stream_leave_the_engine_nothing(
    socket_path: Path,
) -> None:
    importer = Importer(socket_path)

    def kept_after(cycles: int) -> tuple[int, int]:
        for number in range(cycles):
            (die_in_a_bucket if number % 2 else replay)(importer, socket_path)
            socket_path.unlink()
        gc.collect()
        return open_descriptors(), len(shared_memory())

    few = kept_after(20)
    assert kept_after(1000) == few
    assert few[1] <= 1  # the last trainer's segment, until there is another


def die_in_a_bucket(importer: Importer, path: Path) -> None:
    """A trainer that is new each time, as its memory is, and gone after its first bucket."""
    descriptor = os.memfd_create("tandem-weights", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 4096)
    seal(descriptor)
    identity = os.urandom(8).hex()
    frames = lambda hello: [welcome(hello, exporter=identity), bucket_frame(segment=identity)]  # noqa: E731
    with FakeExporter(path, frames, (descriptor,), dies=True), pytest.raises(PeerLostError):
        receive_all(importer, 1)
    os.close(descriptor)


def replay(importer: Importer, path: Path) -> None:
    """Another handoff's welcome, with a descriptor that nobody asked for."""
    descriptor = os.memfd_create("tandem-weights", os.MFD_ALLOW_SEALING)
    frames = lambda _: [welcome({"nonce": "of an earlier handoff"}), bucket_frame()]  # noqa: E731
    with FakeExporter(path, frames, (descriptor,)), pytest.raises(StaleStreamError):
        receive_all(importer, 1)
    os.close(descriptor)


def test_a_peer_that_is_gone_cannot_be_told_why_and_the_reason_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with caplog.at_level("DEBUG", logger="tandem_handoff"):
        Channel(ours).refuse("no weights were loaded")
    assert ours.fileno() == -1
    assert "no weights were loaded" in caplog.text


def seal(descriptor: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def test_a_segment_that_could_shrink_under_a_view_is_refused(socket_path: Path) -> None:
    descriptor = os.memfd_create("s", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 4096)
    gc.collect()  # what earlier tests left in exceptions
    before = open_descriptors()
    with (
        FakeExporter(socket_path, lambda hello: [welcome(hello), bucket_frame()], (descriptor,)),
        pytest.raises(ProtocolError, match="sealed"),
    ):
        receive_all(Importer(socket_path), 1)
    assert open_descriptors() == before
    os.close(descriptor)


def test_a_descriptor_limit_is_named(socket_path: Path, tensors: Tensors) -> None:
    importer = Importer(socket_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with exporting_peer(socket_path, BUCKET) as peer:
        peer.tell(1, LENGTHS, TIMEOUT, None)
        # The connection is the last descriptor that still fits, so the segment's does not.
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free_descriptor() + 1, hard))
        try:
            with pytest.raises(ResourceLimitError, match="open files"):
                receive_all(importer, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with pytest.raises(HandoffError, match=r"ResourceLimit|PeerRefused"):
            peer.reply()
        peer.tell(2, LENGTHS, TIMEOUT, None)
        assert receive_all(importer, 2) == contents(tensors)


def lowest_free_descriptor() -> int:
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


def test_a_memory_limit_is_named(socket_path: Path) -> None:
    importer = Importer(socket_path)
    with Exporter(socket_path, 2**20) as exporter:
        larger_than_any_address_space = torch.empty(1).expand(2**46)
        sent, _ = exchange(exporter, importer, [("large", larger_than_any_address_space)])
        assert isinstance(sent, ResourceLimitError)
        assert exchange(exporter, importer, [("t", torch.ones(3))])[1] == contents([("t", torch.ones(3))])


def test_memory_that_the_engine_cannot_map_is_named_on_both_sides(socket_path: Path) -> None:
    importer = Importer(socket_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with exporting_peer(socket_path, 2**29) as peer:
        peer.tell(1, LENGTHS, TIMEOUT, None)
        resource.setrlimit(resource.RLIMIT_AS, (memory()["VmSize"] + 2**27, hard))
        try:
            with pytest.raises(ResourceLimitError, match="536870912 bytes could not be mapped"):
                receive_all(importer, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        with pytest.raises(HandoffError, match="could not be mapped"):
            peer.reply()
        peer.tell(2, LENGTHS, TIMEOUT, None)
        assert receive_all(importer, 2).keys() == LENGTHS.keys()
