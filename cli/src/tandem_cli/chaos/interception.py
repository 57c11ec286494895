# SPDX-License-Identifier: Apache-2.0
"""Standing between a trainer and its engine while weights go from one to the other.

Weights are in shared memory; what announces them bucket by bucket are frames on a Unix socket (tandem_handoff.channel):
a length of four bytes and so much JSON, with the segment's descriptor riding on the first frame that names it. Whoever
holds a frame back has a bucket that the trainer has written and summed up and of which the engine does not know yet.

Needs nothing but Python, since it is also sent as source text into containers (:mod:`.program`).
"""

import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_LENGTH = struct.Struct("!I")

type Message = dict[str, Any]
type Hand = Callable[[Message, list[int]], None]
"""Is given each message, which it may change, and the descriptors that ride on it."""


@contextlib.contextmanager
def intercepted(path: Path, bucket: Hand) -> Iterator[None]:
    """Have all connections to the socket ``path`` go through here, and ``bucket`` called before one is announced.

    It is called in other threads; with the descriptor of its segment for the first bucket of each connection in it. A
    trainer that starts within the context takes its place back.

    Raises:
        OSError: there is no such socket, or its directory cannot be written to.
    """
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    here = Path(f"/proc/self/fd/{directory}")  # A socket's path has 107 bytes at most.
    place, aside, ours = here / path.name, here / f".{path.name}", here / f".{path.name}.new"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        for left_behind in (aside, ours):
            left_behind.unlink(missing_ok=True)
        aside.hardlink_to(place)
        listener.bind(str(ours))
        listener.listen()
        identity = ours.stat().st_ino
        threading.Thread(target=_serve, args=(listener, aside, bucket), daemon=True).start()
        ours.rename(place)
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                if place.stat().st_ino == identity:
                    aside.rename(place)
            listener.shutdown(socket.SHUT_RDWR)
            aside.unlink(missing_ok=True)
            os.close(directory)


def _serve(listener: socket.socket, aside: Path, bucket: Hand) -> None:
    """Until the listener is shut down."""
    with contextlib.suppress(OSError):
        while True:
            engine, _ = listener.accept()
            trainer = socket.socket(socket.AF_UNIX)
            trainer.connect(str(aside))
            threading.Thread(target=_stand_between, args=(engine, trainer, bucket), daemon=True).start()


def _stand_between(engine: socket.socket, trainer: socket.socket, bucket: Hand) -> None:
    def announced(message: Message, descriptors: list[int]) -> None:
        if message["type"] == "bucket":
            bucket(message, descriptors)

    with engine, trainer:
        asking = threading.Thread(target=_pass_on, args=(engine, trainer, _forget_segments), daemon=True)
        asking.start()
        _pass_on(trainer, engine, announced)
        asking.join()


def _forget_segments(message: Message, _: list[int]) -> None:
    """Of a hello: an engine that knows no segment is sent the descriptor of each."""
    if message["type"] == "hello":
        message["segments"] = []


def _pass_on(source: socket.socket, target: socket.socket, hand: Hand) -> None:
    """Until one of them is closed: what comes from the other way, such as the reason, still arrives."""
    with contextlib.suppress(OSError, EOFError):
        while True:
            descriptors: list[int] = []
            try:
                (length,) = _LENGTH.unpack(_read(source, _LENGTH.size, descriptors))
                message = json.loads(_read(source, length, descriptors))
                hand(message, descriptors)
                body = json.dumps(message).encode()
                frame = _LENGTH.pack(len(body)) + body
                sent = socket.send_fds(target, [frame], descriptors)
                target.sendall(frame[sent:])
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
    for end, direction in ((source, socket.SHUT_RD), (target, socket.SHUT_WR)):
        with contextlib.suppress(OSError):
            end.shutdown(direction)


def _read(source: socket.socket, count: int, descriptors: list[int]) -> bytes:
    received = b""
    while len(received) < count:
        chunk, new, _, _ = socket.recv_fds(source, count - len(received), 2)
        descriptors += new
        if not chunk:
            raise EOFError
        received += chunk
    return received
