# SPDX-License-Identifier: Apache-2.0
"""The sending side, in a trainer rank."""

import secrets
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from tandem_handoff.channel import PROTOCOL, Channel, translated
from tandem_handoff.checksums import copy_with_checksum
from tandem_handoff.deadline import Deadline
from tandem_handoff.errors import (
    HandoffError,
    PeerLostError,
    PeerRefusedError,
    ProtocolError,
    TensorRefusedError,
    VersionMismatchError,
)
from tandem_handoff.manifest import ALIGNMENT, Bucket, Manifest, TensorEntry, Verify, field
from tandem_handoff.segments import Segment, Work, allocate

_SLOTS = 2


class Exporter:
    """Serves a trainer rank's weights on a Unix socket; lives as long as the trainer.

    Two buckets are alive: one is filled while the importer loads the other, so extra memory is 2 x `bucket_bytes`
    whatever the model's size. Their segments are kept between versions. Not for use from several threads.

        with Exporter(run_dir / "handoff-0.sock", bucket_bytes=2**30) as exporter:
            manifest = exporter.export(5, gathered_parameters(), timeout=60.0)

    Args:
        socket_path: where the importer connects; a socket left there by a process before this one is replaced.
        bucket_bytes: size of a bucket; one tensor that is larger grows its bucket, as the engine's loaders take whole
            tensors.
        device: where segments lie, "cpu" or "cuda:N".
        verify: how far importers check.
    """

    def __init__(
        self,
        socket_path: Path | str,
        bucket_bytes: int,
        device: torch.device | str = "cpu",
        verify: Verify = Verify.NAMES,
    ) -> None:
        if bucket_bytes < ALIGNMENT:
            raise ValueError(f"bucket_bytes is {bucket_bytes}, expected at least {ALIGNMENT}")
        self._identity = secrets.token_hex(8)
        self._bucket_bytes = bucket_bytes
        self._device = torch.device(device)
        self._verify = verify
        self._segments: list[Segment | None] = [None] * _SLOTS
        self._path = Path(socket_path)
        self._listener = _listen(self._path)

    def export(self, version: int, tensors: Iterable[tuple[str, torch.Tensor]], timeout: float) -> Manifest:
        """Hands all tensors to one importer and returns once it has loaded them.

        The iterable is consumed to its end even when the importer fails, because producing it may be a collective in
        which other ranks wait; only then is the error raised.

        Args:
            version: the weight version; the importer must ask for the same.
            tensors: Hugging Face names and full tensors, any device, any strides.
            timeout: seconds for all of it, the wait for the importer included.

        Raises:
            HandoffError: which one says what to do; the exporter can be used again.
        """
        iterator = iter(tensors)
        try:
            with self._accepted(version, Deadline(timeout)) as stream:
                for name, tensor in iterator:
                    stream.add(name, tensor)
                return stream.finish()
        except Exception:
            drain(iterator)
            raise

    def close(self) -> None:
        """Stops listening and lets go of the segments. An importer keeps what it has mapped until it connects to
        another exporter.
        """
        self._listener.close()
        self._path.unlink(missing_ok=True)
        self._segments = [None] * _SLOTS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _accepted(self, version: int, deadline: Deadline) -> Iterator["_Stream"]:
        channel, known = self._accept(version, deadline)
        try:
            yield _Stream(
                channel, version, deadline, self._segments, known, self._bucket_bytes, self._device, self._verify
            )
        except BaseException as error:
            channel.refuse(f"{type(error).__name__}: {error}")
            raise
        channel.close()

    def _accept(self, version: int, deadline: Deadline) -> tuple[Channel, set[str]]:
        """The first importer that is alive and wants this version, and the segments it has mapped. Importers that
        gave up while they waited are passed over.
        """
        while True:
            channel = Channel(self._accept_connection(deadline))
            try:
                hello = channel.receive(deadline, "the importer's hello")
                self._welcome(channel, hello, version, deadline)
                return channel, {str(identity) for identity in field(hello, "segments", list)}
            except (PeerLostError, PeerRefusedError):
                channel.close()
            except BaseException as error:
                channel.refuse(str(error))
                raise

    def _welcome(self, channel: Channel, hello: dict[str, Any], version: int, deadline: Deadline) -> None:
        if field(hello, "protocol", int) != PROTOCOL:
            raise ProtocolError(
                f"the importer speaks protocol {hello['protocol']}, this exporter {PROTOCOL}; install one release"
            )
        wanted = field(hello, "version", int)
        welcome = {
            "type": "welcome",
            "version": version,
            "nonce": field(hello, "nonce", str),
            "exporter": self._identity,
            "verify": self._verify.value,
        }
        channel.send(welcome, deadline)
        if wanted != version:
            raise VersionMismatchError(wanted, version)

    def _accept_connection(self, deadline: Deadline) -> socket.socket:
        try:
            self._listener.settimeout(deadline.remaining("the importer's connection"))
            connection, _ = self._listener.accept()
        except OSError as error:
            raise translated(error, "the wait for an importer") from error
        return connection


@dataclass(frozen=True, slots=True)
class _Filled:
    """A bucket that the importer has not been told of, as the copies into it may still run."""

    bucket: Bucket
    segment: Segment
    copies: Work


class _Stream:
    """One version on its way to one importer.

    A GPU copies after it was asked to, and goes from one bucket to the next without a pause: the importer is told of a
    bucket when the copies into it are seen to be done, and they are waited for once the next one's are enqueued.
    """

    def __init__(
        self,
        channel: Channel,
        version: int,
        deadline: Deadline,
        segments: list[Segment | None],
        known: set[str],
        bucket_bytes: int,
        device: torch.device,
        verify: Verify,
    ) -> None:
        self._channel = channel
        self._version = version
        self._deadline = deadline
        self._segments = segments
        self._known = known
        self._bucket_bytes = bucket_bytes
        self._device = device
        self._verify = verify
        self._buckets: list[Bucket] = []
        self._filled: _Filled | None = None
        self._unreleased: deque[int] = deque()
        self._names: set[str] = set()
        self._entries: list[TensorEntry] = []
        self._used = 0
        self._content: torch.Tensor | None = None

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Packs one tensor, into the next bucket if it does not fit into this one."""
        if name in self._names:
            raise TensorRefusedError(name, "the trainer's export yields it twice")
        self._names.add(name)
        source = tensor.detach()
        if self._content is not None and self._used + source.nbytes > self._content.numel():
            self._end_bucket()
        if self._content is None:
            self._content = self._free_segment(source.nbytes).tensor()
        self._announce(wait=False)
        entry = TensorEntry.of(name, source, self._used)
        place = entry.view(self._content)
        if self._verify is Verify.CHECKSUMS:
            entry = replace(entry, checksum=copy_with_checksum(source, place))
        else:
            place.copy_(source)
        self._entries.append(entry)
        self._used = _aligned(self._used + source.nbytes)

    def finish(self) -> Manifest:
        """Sends what is left and waits until the importer has loaded and checked everything."""
        if self._entries:
            self._end_bucket()
        self._announce(wait=True)
        manifest = Manifest(self._version, tuple(self._buckets))
        self._channel.send(
            {"type": "end", "tensors": manifest.tensors, "nbytes": manifest.nbytes, "digest": manifest.digest},
            self._deadline,
        )
        while self._unreleased:
            self._await_release()
        done = self._channel.receive(self._deadline, "the importer's confirmation")
        if done["type"] != "done" or done.get("digest") != manifest.digest:
            raise ProtocolError(f"the importer confirmed {done}, expected digest {manifest.digest}")
        return manifest

    def _free_segment(self, nbytes: int) -> Segment:
        """The next slot's segment, released by the importer and large enough."""
        if len(self._unreleased) == _SLOTS:
            self._await_release()
        slot = len(self._buckets) % _SLOTS
        segment = self._segments[slot]
        if segment is None or segment.nbytes < nbytes:
            self._segments[slot] = None  # freed before its successor is allocated
            del segment
            segment = self._segments[slot] = allocate(self._device, max(self._bucket_bytes, _aligned(nbytes)))
        return segment

    def _end_bucket(self) -> None:
        self._announce(wait=True)
        index = len(self._buckets)
        slot = index % _SLOTS
        segment = self._segments[slot]
        assert segment is not None
        bucket = Bucket(index, slot, segment.nbytes, self._used, tuple(self._entries))
        self._filled = _Filled(bucket, segment, segment.enqueued())
        self._buckets.append(bucket)
        self._unreleased.append(index)
        self._entries, self._used, self._content = [], 0, None
        self._announce(wait=False)

    def _announce(self, *, wait: bool) -> None:
        """Tells the importer of the bucket that was filled last, if the copies into it are done or shall be."""
        if self._filled is None or not (wait or self._filled.copies.query()):
            return
        self._filled.copies.synchronize()
        bucket, segment, self._filled = self._filled.bucket, self._filled.segment, None
        message = {
            "type": "bucket",
            "index": bucket.index,
            "slot": bucket.slot,
            "segment": segment.identity,
            "capacity": bucket.capacity,
            "nbytes": bucket.nbytes,
            "entries": [entry.to_json() for entry in bucket.entries],
        }
        if segment.identity in self._known:
            self._channel.send(message, self._deadline)
        else:
            with segment.descriptor() as descriptor:
                self._channel.send(message, self._deadline, descriptor)
            self._known.add(segment.identity)

    def _await_release(self) -> None:
        release = self._channel.receive(self._deadline, f"the release of bucket {self._unreleased[0]}")
        expected = self._unreleased.popleft()
        if release["type"] != "release" or release.get("index") != expected:
            raise ProtocolError(f"the importer sent {release}, expected the release of bucket {expected}")


def drain(tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Consumes an export without sending it: for ranks that take part in the gather but have no importer."""
    deque(tensors, maxlen=0)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        listener.listen(4)
    except OSError as error:
        listener.close()
        raise HandoffError(
            f"cannot listen on {path}: {error.strerror or error}; the path must be writable and at most 107 bytes long"
        ) from error
    return listener
