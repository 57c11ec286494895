# SPDX-License-Identifier: Apache-2.0
"""Calls that wait for the warden's word (``SECCOMP_RET_USER_NOTIF``)."""

import errno
import fcntl
import struct
from dataclasses import dataclass

_RECEIVE = 0xC0502100
_SEND = 0xC0182101
_CONTINUE = 1
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")


@dataclass(frozen=True, slots=True)
class Notification:
    """A call that a process waits in. ``pid`` is a thread's, as the warden sees it."""

    id: int
    pid: int
    number: int
    first_argument: int


def receive(listener: int) -> Notification | None:
    """The next call, or ``None`` if the process that made it has died since."""
    buffer = bytearray(_NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, buffer)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINTR):
            return None
        raise
    found = _NOTIFICATION.unpack(buffer)
    return Notification(found[0], found[1], found[3], found[6])


def let_go(listener: int, notification: Notification) -> None:
    """Let the call be made. Safe only where the decision rests on numbers, not on memory the program can change."""
    try:
        fcntl.ioctl(listener, _SEND, _ANSWER.pack(notification.id, 0, 0, _CONTINUE))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
