# SPDX-License-Identifier: Apache-2.0
"""One run over a Unix socket: a request one way, an answer the other. Each is lengths, JSON and bytes."""

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

HEAD = struct.Struct("=IQQ")
"""Bytes of the JSON header, of the first and of the second blob."""


def packed(header: Mapping[str, Any], first: bytes = b"", second: bytes = b"") -> bytes:
    """A message as it is sent."""
    text = json.dumps(header).encode()
    return HEAD.pack(len(text), len(first), len(second)) + text + first + second


def receive(connection: socket.socket) -> tuple[dict[str, Any], bytes, bytes]:
    """The next message.

    Raises:
        EOFError: the other side went.
    """
    sizes = HEAD.unpack(_exactly(connection, HEAD.size))
    header, first, second = (_exactly(connection, size) for size in sizes)
    return json.loads(header), first, second


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        piece = connection.recv(min(count - len(found), 2**20))
        if not piece:
            raise EOFError("the other side of the sandbox's socket went")
        found += piece
    return bytes(found)
