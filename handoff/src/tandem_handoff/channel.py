# SPDX-License-Identifier: Apache-2.0
"""Messages and file descriptors between two processes over a Unix socket.

A frame is a length (4 bytes, big endian) and as many bytes of JSON: an object with a `type`. One descriptor can ride
on a frame (SCM_RIGHTS), so neither a shared PID nor a shared IPC namespace is needed: two containers of a pod that
mount the same directory can hand memory over.
"""

import errno
import json
import logging
import os
import socket
import struct
from typing import Any

from tandem_handoff.deadline import Deadline
from tandem_handoff.errors import (
    DeadlineExceededError,
    HandoffError,
    PeerLostError,
    PeerRefusedError,
    ProtocolError,
    ResourceLimitError,
)

MAX_FRAME_BYTES = 16 * 2**20
PROTOCOL = 2
"""Grows with every change of the messages or of the checksum; both sides must speak the same."""
_LENGTH = struct.Struct("!I")
_MAX_REASON = 2000
_UNREACHABLE = (PeerLostError, PeerRefusedError, DeadlineExceededError, ResourceLimitError)
log = logging.getLogger(__name__)


class Channel:
    """One connection. Not for use from several threads; closed by the first error, since what a broken stream says
    next means nothing.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def send(self, message: dict[str, Any], deadline: Deadline, descriptor: int | None = None) -> None:
        """Sends one frame.

        Raises:
            PeerRefusedError: the peer sent a refusal before it closed.
            PeerLostError: the peer is gone.
            DeadlineExceededError: the peer does not read.
        """
        body = json.dumps(message, separators=(",", ":")).encode()
        if len(body) > MAX_FRAME_BYTES:
            raise ProtocolError(
                f"a {message['type']} frame of {len(body)} bytes exceeds {MAX_FRAME_BYTES}; use smaller buckets"
            )
        what = f"sending {message['type']!r}"
        try:
            self._socket.settimeout(deadline.remaining(what))
            self._send_frame(_LENGTH.pack(len(body)) + body, descriptor)
        except OSError as error:
            raise self._reason(error, what) from error

    def receive(self, deadline: Deadline, waiting_for: str) -> dict[str, Any]:
        """The next frame; see `receive_with_descriptor`. A descriptor with it is a breach of protocol."""
        message, descriptor = self.receive_with_descriptor(deadline, waiting_for)
        if descriptor is not None:
            os.close(descriptor)
            raise ProtocolError(f"a descriptor came with {message['type']!r}, expected none")
        return message

    def receive_with_descriptor(self, deadline: Deadline, waiting_for: str) -> tuple[dict[str, Any], int | None]:
        """The next frame and the descriptor that came with it, if one did, which is then the caller's to close.

        Raises:
            PeerRefusedError: the peer sent a refusal instead.
            PeerLostError: the peer is gone.
            ProtocolError: the frame is malformed or too large.
            ResourceLimitError: a descriptor was sent but this process may open no more.
        """
        descriptors: list[int] = []
        try:
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline, waiting_for, descriptors))
            if length > MAX_FRAME_BYTES:
                raise ProtocolError(f"a frame of {length} bytes exceeds {MAX_FRAME_BYTES}")
            message = _parse(self._read(length, deadline, waiting_for, descriptors))
            if len(descriptors) > 1:
                raise ProtocolError(f"{len(descriptors)} descriptors came with one frame, expected at most one")
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return message, (descriptors[0] if descriptors else None)

    def refuse(self, reason: str) -> None:
        """Tells the peer why this side gives up, if it still listens, and closes. The reason is the caller's to raise:
        a peer that cannot be told is noted in the log only, so as not to take the reason's place.
        """
        try:
            self.send({"type": "refuse", "reason": reason[:_MAX_REASON]}, Deadline(1.0))
        except _UNREACHABLE as error:
            log.debug("the peer was not told why the handoff ended (%s): %s", reason, error)
        finally:
            self.close()

    def close(self) -> None:
        """Closes the connection; the peer's next read or write fails."""
        self._socket.close()

    def _reason(self, error: OSError, what: str) -> HandoffError:
        reason = translated(error, what)
        return (self._last_words() or reason) if isinstance(reason, PeerLostError) else reason

    def _last_words(self) -> PeerRefusedError | None:
        """The refusal that a peer left in the buffer before it closed: a better reason than a broken pipe."""
        try:
            while True:
                self.receive(Deadline(1.0), "the peer's last message")
        except PeerRefusedError as refusal:
            return refusal
        except HandoffError:
            return None

    def _send_frame(self, frame: bytes, descriptor: int | None) -> None:
        sent = 0 if descriptor is None else socket.send_fds(self._socket, [frame], [descriptor])
        self._socket.sendall(frame[sent:])

    def _read(self, count: int, deadline: Deadline, waiting_for: str, descriptors: list[int]) -> bytes:
        received = bytearray()
        while len(received) < count:
            try:
                self._socket.settimeout(deadline.remaining(waiting_for))
                chunk, new, flags, _ = socket.recv_fds(self._socket, count - len(received), 2, socket.MSG_CMSG_CLOEXEC)
            except OSError as error:
                raise translated(error, waiting_for) from error
            descriptors += new
            if flags & socket.MSG_CTRUNC:
                raise ResourceLimitError(
                    "a segment's descriptor did not fit: this process is at its limit of open files (ulimit -n)"
                )
            if not chunk:
                raise PeerLostError(f"the peer closed the connection during {waiting_for}")
            received += chunk
        return bytes(received)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame is no JSON: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError("a frame is no JSON object with a type")
    if message["type"] == "refuse":
        raise PeerRefusedError(str(message.get("reason"))[:_MAX_REASON])
    return message


def translated(error: OSError, what: str) -> HandoffError:
    """The handoff error that an error of a socket means."""
    if isinstance(error, TimeoutError):
        return DeadlineExceededError(f"{what} passed the handoff's deadline")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS, errno.ENOMEM):
        return ResourceLimitError(f"{what}: {error.strerror}")
    return PeerLostError(f"the connection broke during {what}: {error.strerror or error}")
