# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's event files, as far as scalars need them.

The format is a sequence of records with checksums (TFRecord), each a protobuf message of tensorflow's event.proto.
Neither has changed since 2015. The libraries that write it bring torch or a web server along, hence these lines;
tensorboard's own reader checks them in the tests.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

log = structlog.get_logger()

_CASTAGNOLI = 0x82F63B78
_SESSION_START = 1


class EventFile:
    """Scalars of a run, by step. A step that was written before takes back what was written from there on.

    >>> EventFile(Path("runs/tensorboard")).add(0, {"reward/mean": 0.5}, now=1.7e9)      # doctest: +SKIP
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._last: int | None = None
        self._begin()

    def add(self, step: int, scalars: Mapping[str, float], now: float) -> None:
        """Write the scalars of a step; ``now`` in Unix seconds."""
        records = [] if self._last is not None else [_event(now, _text(3, "brain.Event:2"))]
        if self._last is None or step <= self._last:
            records.append(_event(now, _whole(2, step), _message(7, _whole(1, _SESSION_START))))
        values = b"".join(
            _message(1, _text(1, name) + _key(2, 5) + struct.pack("<f", value)) for name, value in scalars.items()
        )
        records.append(_event(now, _whole(2, step), _message(5, values)))
        try:
            with self._path.open("ab") as file:
                file.write(b"".join(map(_record, records)))
        except OSError as error:
            # metrics.jsonl has the step, and waits for room; half a record would hide what follows it in this file.
            log.warning("an iteration is missing in the event files", step=step, error=str(error))
            self._begin()
        else:
            self._last = step

    def _begin(self) -> None:
        """The next step goes to a new file. Readers take the files of a folder in the order of their names."""
        name = f"events.out.tfevents.{time.time_ns() // 10**6:013d}.{socket.gethostname()}.{os.getpid()}"
        self._path = self._directory / name
        self._last = None


def _event(now: float, *fields: bytes) -> bytes:
    return _key(1, 1) + struct.pack("<d", now) + b"".join(fields)


def _record(content: bytes) -> bytes:
    """Length, its checksum, content, its checksum."""
    length = struct.pack("<Q", len(content))
    return length + _masked_crc(length) + content + _masked_crc(content)


def _key(field: int, wire_type: int) -> bytes:
    return bytes([field << 3 | wire_type])


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _whole(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_CASTAGNOLI if byte & 1 else 0)
    return byte


_TABLE = tuple(map(_crc_of_byte, range(256)))


def _masked_crc(content: bytes) -> bytes:
    """CRC-32C, rotated and shifted as TFRecord wants it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
