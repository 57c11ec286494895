# SPDX-License-Identifier: Apache-2.0
"""The receiving side, in an engine's worker."""

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tandem_handoff.channel import PROTOCOL, Channel, translated
from tandem_handoff.checksums import checksum_and_finite
from tandem_handoff.deadline import Deadline
from tandem_handoff.errors import ProtocolError, StaleStreamError, TensorRefusedError, VersionMismatchError
from tandem_handoff.manifest import Bucket, Manifest, TensorEntry, Verify, field
from tandem_handoff.segments import Segment, attach

_CONNECT_PAUSE = 0.02


@dataclass(frozen=True, slots=True)
class Expected:
    """What a name must look like.

    Attributes:
        shape: its full shape, or None where the receiver cannot tell.
        required: whether a handoff without it is incomplete.
    """

    shape: tuple[int, ...] | None = None
    required: bool = True


class Importer:
    """Receives handoffs from the exporter at a socket; lives as long as the engine. Mappings are kept from one
    handoff to the next.

        importer = Importer(run_dir / "handoff-0.sock")
        for tensors in importer.receive(version=5, timeout=60.0):
            model.load_weights(tensors)
        importer.manifest.digest

    A consumer that stops early or fails calls `abort`, or the exporter waits until its deadline. Not for use from
    several threads.

    Attributes:
        manifest: of the last complete handoff, verified against the exporter's; None before the first, and from the
            start of a handoff to its end.
    """

    def __init__(self, socket_path: Path | str, device: torch.device | str = "cpu") -> None:
        self.manifest: Manifest | None = None
        self._path = Path(socket_path)
        self._device = torch.device(device)
        self._segments: dict[int, Segment] = {}
        self._exporter: str | None = None
        self._channel: Channel | None = None
        self._current: Segment | None = None

    def receive(
        self,
        version: int,
        timeout: float,
        expected: Mapping[str, Expected] | None = None,
        accept: Callable[[Manifest], None] = lambda manifest: None,
    ) -> Iterator[list[tuple[str, torch.Tensor]]]:
        """Yields the tensors of each bucket as views on shared memory.

        **A view is valid until the next bucket is asked for**: then the exporter overwrites it. A consumer that keeps
        one longer copies it; `views_alive` tells whether it kept any. The list is emptied when the next one is asked
        for; then too, checksums are compared, so **nothing counts before this generator has ended**.

        Args:
            version: the weight version wanted.
            timeout: seconds for all of it, the wait for the exporter included.
            expected: if given, names beyond these, other shapes, and the absence of a required name are refused.
            accept: called once everything has come; the exporter hears what it raises instead of "done".

        Raises:
            TensorRefusedError: a tensor is not what it should be; the error names it.
            HandoffError: any other reason; the importer can be used again.
        """
        self.abort("a new handoff was started")
        self.manifest = None
        deadline = Deadline(timeout)
        self._channel = channel = Channel(_connect(self._path, deadline))
        try:
            reception = _Reception(version, self._greet(channel, version, deadline), expected)
            while (frame := channel.receive_with_descriptor(deadline, "the next bucket"))[0]["type"] != "end":
                bucket, segment = self._open(reception, *frame)
                tensors = reception.views(bucket, segment.tensor())
                yield tensors
                tensors.clear()
                reception.verify(bucket, segment.tensor())
                segment.enqueued().synchronize()
                channel.send({"type": "release", "index": bucket.index}, deadline)
            _close(frame[1])
            manifest = reception.complete(frame[0])
            accept(manifest)
            channel.send({"type": "done", "digest": manifest.digest}, deadline)
        except BaseException as error:
            self._end(channel, f"{type(error).__name__}: {error}")
            raise
        self.manifest = manifest
        self._end(channel, None)

    def views_alive(self) -> bool:
        """Whether any view of the current bucket is still referred to in this process: reusing the bucket would
        change it.
        """
        return self._current is not None and self._current.in_use()

    def abort(self, reason: str) -> None:
        """Ends a handoff that is under way, if there is one, and tells the exporter why."""
        if self._channel is not None:
            self._end(self._channel, reason)

    def close(self) -> None:
        """Ends a handoff that is under way and lets go of all mappings; views still alive keep theirs."""
        self.abort("the importer was closed")
        self._segments.clear()

    def _end(self, channel: Channel, refusal: str | None) -> None:
        channel.close() if refusal is None else channel.refuse(refusal)
        if self._channel is channel:  # an abandoned generator may end after the next handoff has begun
            self._channel = self._current = None

    def _greet(self, channel: Channel, version: int, deadline: Deadline) -> Verify:
        nonce = secrets.token_hex(16)
        known = [segment.identity for segment in self._segments.values()]
        channel.send(
            {"type": "hello", "protocol": PROTOCOL, "version": version, "nonce": nonce, "segments": known}, deadline
        )
        welcome = channel.receive(deadline, f"the exporter to offer version {version}")
        if welcome["type"] != "welcome" or welcome.get("nonce") != nonce:
            raise StaleStreamError(
                f"the exporter's {welcome['type']!r} does not answer this handoff's hello: it belongs to another one"
            )
        if (offered := field(welcome, "version", int)) != version:
            raise VersionMismatchError(version, offered)
        if (exporter := field(welcome, "exporter", str)) != self._exporter:
            self._segments.clear()  # of a trainer that is gone: its memory is freed here
            self._exporter = exporter
        return Verify(field(welcome, "verify", str))

    def _open(self, reception: "_Reception", message: dict[str, Any], descriptor: int | None) -> tuple[Bucket, Segment]:
        """The announced bucket and its memory, mapped now or from before."""
        try:
            bucket = reception.announced(message)
            identity = field(message, "segment", str)
        except BaseException:
            _close(descriptor)
            raise
        segment = self._segments.get(bucket.slot)
        if segment is not None and segment.identity == identity:
            _close(descriptor)
        elif descriptor is None:
            raise ProtocolError(f"bucket {bucket.index} lies in segment {identity}, which never came here")
        else:
            self._current = self._segments.pop(bucket.slot, None)
            segment = self._segments[bucket.slot] = attach(self._device, identity, bucket.capacity, descriptor)
        self._current = segment
        return bucket, segment


class _Reception:
    """What has come of one version so far, checked as it comes."""

    def __init__(self, version: int, verify: Verify, expected: Mapping[str, Expected] | None) -> None:
        self._version = version
        self._verify = verify
        self._expected = expected
        self._buckets: list[Bucket] = []
        self._names: set[str] = set()

    def announced(self, message: dict[str, Any]) -> Bucket:
        """Reads a bucket's frame and checks names, dtypes and shapes."""
        if message["type"] != "bucket" or field(message, "index", int) != len(self._buckets):
            raise ProtocolError(
                f"{message['type']!r} with index {message.get('index')} came, expected bucket {len(self._buckets)}"
            )
        entries = tuple(TensorEntry.from_json(entry) for entry in field(message, "entries", list))
        for entry in entries:
            self._check(entry)
        slot, capacity, nbytes = (field(message, name, int) for name in ("slot", "capacity", "nbytes"))
        bucket = Bucket(len(self._buckets), slot, capacity, nbytes, entries)
        self._buckets.append(bucket)
        return bucket

    @staticmethod
    def views(bucket: Bucket, segment: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """The bucket's tensors."""
        return [(entry.name, entry.view(segment)) for entry in bucket.entries]

    def verify(self, bucket: Bucket, segment: torch.Tensor) -> None:
        """Check the content of a bucket that was loaded, if the exporter asks for it.

        Before it, a change between the check and the load would go unseen.
        """
        if self._verify is Verify.CHECKSUMS:
            for entry in bucket.entries:
                _check_content(entry, entry.view(segment))

    def complete(self, end: dict[str, Any]) -> Manifest:
        """The manifest, if nothing is missing and the exporter's digest is the same."""
        for name, expected in (self._expected or {}).items():
            if expected.required and name not in self._names:
                raise TensorRefusedError(
                    name, f"it is missing: the exporter sent {len(self._names)} tensors without it"
                )
        manifest = Manifest(self._version, tuple(self._buckets))
        if end.get("digest") != manifest.digest:
            raise ProtocolError(f"the exporter's digest is {end.get('digest')}, that of what came {manifest.digest}")
        return manifest

    def _check(self, entry: TensorEntry) -> None:
        if entry.name in self._names:
            raise TensorRefusedError(entry.name, "it came twice")
        if self._expected is not None:
            expected = self._expected.get(entry.name)
            if expected is None:
                raise TensorRefusedError(entry.name, "the engine's model has no such tensor")
            if expected.shape is not None and expected.shape != entry.shape:
                raise TensorRefusedError(
                    entry.name, f"its shape is {list(entry.shape)}, the engine's model has {list(expected.shape)}"
                )
        self._names.add(entry.name)


def _check_content(entry: TensorEntry, content: torch.Tensor) -> None:
    found, finite = checksum_and_finite(content)
    if found != entry.checksum:
        raise TensorRefusedError(
            entry.name, f"its checksum is {found:#x}, the trainer's {entry.checksum or 0:#x}: it changed on the way"
        )
    if not finite:
        raise TensorRefusedError(entry.name, "it holds NaN or infinity")


def _connect(path: Path, deadline: Deadline) -> socket.socket:
    """Connects, waiting for an exporter that does not listen yet."""
    while True:
        left = deadline.remaining(f"the connection to the exporter at {path.name}")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(left)
            connection.connect(str(path))
            return connection
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            connection.close()
            time.sleep(_CONNECT_PAUSE)
        except OSError as error:
            connection.close()
            raise translated(error, f"connecting to the exporter at {path.name}") from error


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)
