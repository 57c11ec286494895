# SPDX-License-Identifier: Apache-2.0
"""The other end of a handoff, in a process of its own."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tandem_handoff import Exporter, HandoffError, Importer, Manifest, Verify

# Children are forked from a server that has imported torch but never computed: quick to start and free of its threads.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tandem_handoff"])

Content = tuple[str, tuple[int, ...], bytes]
REPLY_SECONDS = 240.0


@dataclass(frozen=True)
class Received:
    """What an importer saw: dtype, shape and bytes of each tensor; its manifest; its open descriptors afterwards."""

    tensors: dict[str, Content]
    manifest: Manifest
    descriptors: int


def content(tensor: torch.Tensor) -> Content:
    """A tensor's dtype, shape and bytes, for comparison."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return str(tensor.dtype), tuple(tensor.shape), flat.numpy().tobytes()


def contents(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, Content]:
    """`content` of each."""
    return {name: content(tensor) for name, tensor in tensors}


def counting(length: int) -> torch.Tensor:
    """float32 [length], what an exporting peer sends."""
    return torch.arange(length, dtype=torch.float32)


def receive_all(importer: Importer, version: int, timeout: float = REPLY_SECONDS, **options: Any) -> dict[str, Any]:
    seen = {}
    for bucket in importer.receive(version, timeout, **options):
        seen |= contents(bucket)
    return seen


def exchange(
    exporter: Exporter, importer: Importer, tensors: Any, version: int = 1, wanted: int = 1, **options: Any
) -> tuple[Manifest | HandoffError, dict[str, Any] | HandoffError]:
    """Runs both ends in this process; what each returned or raised."""
    with ThreadPoolExecutor(2) as pool:
        sent = pool.submit(exporter.export, version, tensors, REPLY_SECONDS)
        received = pool.submit(receive_all, importer, wanted, **options)
        return _outcome(sent.result), _outcome(received.result)


def _outcome[T](result: Callable[[], T]) -> T | HandoffError:
    try:
        return result()
    except HandoffError as error:
        return error


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def memory(pid: int | str = "self") -> dict[str, int]:
    """Bytes of a process by the names of /proc: VmRSS and VmHWM (its peak), RssAnon, RssShmem."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return {name: int(words[0]) * 1024 for name, words in fields.items() if len(words) == 2 and words[1] == "kB"}


def forget_peak(pid: int | str = "self") -> None:
    """Lets VmHWM start over from what the process has now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def shared_memory() -> set[int]:
    """Inodes of the handoff segments that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {int(line.split()[4]) for line in lines if "memfd:tandem-weights" in line}


class Peer:
    """A process that obeys commands; ended with the context it was made in."""

    def __init__(self, process: Any, connection: Connection) -> None:
        self.process = process
        self._connection = connection

    def tell(self, *command: Any) -> None:
        """Sends a command."""
        self._connection.send(command)

    def reply(self) -> Any:
        """The answer to the last command; what the peer raised is raised here."""
        assert self._connection.poll(REPLY_SECONDS), "the peer did not answer"
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ended(self) -> int | None:
        """Waits for the end of a process that was told to die; its exit code."""
        self.process.join(REPLY_SECONDS)
        code: int | None = self.process.exitcode
        return code


@contextmanager
def importing_peer(socket_path: Path) -> Iterator[Peer]:
    """A process with an importer. Commands: version, timeout, bucket in which to die (or None)."""
    with _peer(_import, socket_path) as peer:
        yield peer


@contextmanager
def looking_peer(socket_path: Path) -> Iterator[Peer]:
    """A process with an importer that keeps nothing of what it gets. Commands: version, timeout, bucket in which to
    die (or None). It answers with its open descriptors.
    """
    with _peer(_look, socket_path) as peer:
        yield peer


@contextmanager
def exporting_peer(socket_path: Path, bucket_bytes: int, verify: Verify = Verify.NAMES) -> Iterator[Peer]:
    """A process with an exporter. Commands: version, names and lengths of `counting` tensors, timeout,
    the tensor before which to die (or None).
    """
    with _peer(_export, socket_path, bucket_bytes, verify) as peer:
        assert peer.reply() == "listening"
        yield peer


@contextmanager
def _peer(target: Any, *arguments: Any) -> Iterator[Peer]:
    ours, theirs = _processes.Pipe()
    process = _processes.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Peer(process, ours)
    finally:
        ours.close()
        process.kill()
        process.join()


def _import(commands: Connection, socket_path: Path) -> None:
    torch.set_num_threads(1)
    importer = Importer(socket_path)
    while True:
        version, timeout, fatal_bucket = commands.recv()
        seen: dict[str, Content] = {}
        try:
            for index, tensors in enumerate(importer.receive(version, timeout)):
                if index == fatal_bucket:
                    os._exit(9)
                seen |= contents(tensors)
        except HandoffError as error:
            commands.send(_plain(error))
            continue
        assert importer.manifest is not None
        commands.send(Received(seen, importer.manifest, open_descriptors()))


def _look(commands: Connection, socket_path: Path) -> None:
    torch.set_num_threads(1)
    importer = Importer(socket_path)
    while True:
        version, timeout, fatal_bucket = commands.recv()
        try:
            for index, _ in enumerate(importer.receive(version, timeout)):
                if index == fatal_bucket:
                    os._exit(9)
            commands.send(open_descriptors())
        except HandoffError as error:
            commands.send(_plain(error))


def _export(commands: Connection, socket_path: Path, bucket_bytes: int, verify: Verify) -> None:
    torch.set_num_threads(1)
    with Exporter(socket_path, bucket_bytes, verify=verify) as exporter:
        commands.send("listening")
        while True:
            version, lengths, timeout, fatal_tensor = commands.recv()
            try:
                commands.send(exporter.export(version, _until(lengths, fatal_tensor), timeout))
            except HandoffError as error:
                commands.send(_plain(error))


def _until(shapes: dict[str, int], fatal: int | None) -> Iterator[tuple[str, torch.Tensor]]:
    for index, (name, length) in enumerate(shapes.items()):
        if index == fatal:
            os._exit(9)
        yield name, counting(length)
    if fatal == len(shapes):
        os._exit(9)


def _plain(error: HandoffError) -> HandoffError:
    """An error that survives the way through a pipe, whatever its constructor takes."""
    return HandoffError(f"{type(error).__name__}: {error}")
