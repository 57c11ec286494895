# SPDX-License-Identifier: Apache-2.0
"""What a handoff carries: every tensor's name, dtype, shape and place, and one digest over all of them."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import torch

from tandem_handoff.errors import ProtocolError, TensorRefusedError

ALIGNMENT = 256
"""Bytes. Tensors start at multiples of it within a segment: enough for every dtype and for coalesced GPU reads."""

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


class Verify(StrEnum):
    """How far a handoff is checked: `spec.handoff.verify`. Names, dtypes, shapes and sizes always are."""

    NAMES = "Names"
    CHECKSUMS = "Checksums"
    """Also the content: a 64-bit checksum of each tensor, and no NaN or infinity in it. Costs one more read of the
    bytes, by the importer.
    """


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a handoff. `offset` and `nbytes` are bytes within the segment of its bucket; `checksum` is None
    under Verify.NAMES.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    checksum: int | None

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor, offset: int) -> "TensorEntry":
        """Describes a tensor that is to lie at the offset, its content not looked at.

        Raises:
            TensorRefusedError: its dtype cannot be handed over.
        """
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise TensorRefusedError(name, f"dtype {dtype} cannot be handed over; supported are {', '.join(DTYPES)}")
        return cls(name, dtype, tuple(tensor.shape), offset, tensor.nbytes, None)

    @classmethod
    def from_json(cls, message: Any) -> "TensorEntry":
        """Reads an entry from a frame.

        Raises:
            ProtocolError: a field is missing or of the wrong type.
            TensorRefusedError: size, dtype and shape do not fit together.
        """
        entry = cls(
            field(message, "name", str),
            field(message, "dtype", str),
            tuple(field(message, "shape", list)),
            field(message, "offset", int),
            field(message, "nbytes", int),
            None if message.get("checksum") is None else field(message, "checksum", int),
        )
        if not all(type(length) is int and length >= 0 for length in entry.shape):
            raise TensorRefusedError(entry.name, f"shape {list(entry.shape)} is no list of lengths")
        if entry.dtype not in DTYPES:
            raise TensorRefusedError(entry.name, f"dtype {entry.dtype!r} is unknown; supported are {', '.join(DTYPES)}")
        needed = math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
        if entry.nbytes != needed:
            raise TensorRefusedError(
                entry.name, f"{entry.nbytes} bytes for shape {list(entry.shape)} of {entry.dtype}, which takes {needed}"
            )
        return entry

    def to_json(self) -> dict[str, Any]:
        """The entry as a frame carries it."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "offset": self.offset,
            "nbytes": self.nbytes,
            "checksum": self.checksum,
        }

    def view(self, segment: torch.Tensor) -> torch.Tensor:
        """This tensor within the bytes of its segment (uint8 [nbytes of the segment]), without a copy.

        Raises:
            TensorRefusedError: it does not lie within the segment, or is not aligned.
        """
        if self.offset < 0 or self.offset % ALIGNMENT or self.offset + self.nbytes > segment.numel():
            raise TensorRefusedError(
                self.name,
                f"{self.nbytes} bytes at offset {self.offset} do not fit its segment of {segment.numel()} bytes",
            )
        return segment[self.offset : self.offset + self.nbytes].view(DTYPES[self.dtype]).view(self.shape)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A filled segment. `nbytes` of its `capacity` are used; a capacity above the exporter's setting means that it
    was grown for one large tensor.
    """

    index: int
    slot: int
    capacity: int
    nbytes: int
    entries: tuple[TensorEntry, ...]


@dataclass(frozen=True)
class Manifest:
    """All of one handoff. Both sides build their own and compare digests."""

    version: int
    buckets: tuple[Bucket, ...]

    @property
    def entries(self) -> Iterable[TensorEntry]:
        """All tensors, in the order of their transfer."""
        return (entry for bucket in self.buckets for entry in bucket.entries)

    @cached_property
    def tensors(self) -> int:
        """Number of tensors."""
        return sum(len(bucket.entries) for bucket in self.buckets)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors, padding not counted."""
        return sum(entry.nbytes for entry in self.entries)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the version and every tensor's name, dtype, shape and checksum, in the order of names.

        It does not depend on how tensors were packed, so engines with different buckets agree on it. Under
        Verify.NAMES it says nothing about content.
        """
        rows = sorted([entry.name, entry.dtype, entry.shape, entry.checksum] for entry in self.entries)
        return hashlib.sha256(json.dumps([self.version, rows], separators=(",", ":")).encode()).hexdigest()


def field[T](message: Any, name: str, kind: type[T]) -> T:
    """A field of a frame, or of an object within it.

    Raises:
        ProtocolError: it is missing, or of another type.
    """
    if not isinstance(message, dict):
        raise ProtocolError(f"{type(message).__name__} came where an object with {name!r} was expected")
    value = message.get(name)
    if type(value) is not kind:
        raise ProtocolError(f"field {name!r} is {type(value).__name__}, expected {kind.__name__}")
    return value
