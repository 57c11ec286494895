# SPDX-License-Identifier: Apache-2.0
"""Memory that two processes see, named by a file descriptor."""

import errno
import fcntl
import mmap
import os
import secrets
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch

from tandem_handoff.errors import ProtocolError, ResourceLimitError

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Work(Protocol):
    """Work that a device does after it was asked to, as a CUDA event sees it."""

    def query(self) -> bool:
        """Whether it is done."""
        ...

    def synchronize(self) -> None:
        """Returns when it is done."""
        ...


class Segment(ABC):
    """A block of memory with a descriptor.

    The mapping lives as long as the segment or any tensor over it, so dropping a segment under a live view is safe.

    Attributes:
        identity: unique to the allocation, equal on both sides: a peer that has mapped it once need not be sent the
            descriptor again.
        nbytes: its size.
    """

    def __init__(self, identity: str, nbytes: int) -> None:
        self.identity = identity
        self.nbytes = nbytes
        self._anchor: weakref.ref[Any] | None = None

    def tensor(self) -> torch.Tensor:
        """The whole segment as uint8 [nbytes], without a copy."""
        memory = self._memory()
        self._anchor = weakref.ref(memory)
        return self._wrap(memory)

    def in_use(self) -> bool:
        """Whether the tensor last handed out, or any view of it, is still alive in this process."""
        return self._anchor is not None and self._anchor() is not None

    @abstractmethod
    def enqueued(self) -> Work:
        """The work on this segment's memory that this thread has asked for so far."""

    @abstractmethod
    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """A descriptor to send, open within the context."""

    @abstractmethod
    def _memory(self) -> Any:
        """A new object that keeps the mapping alive, can be weakly referenced, and that _wrap takes."""

    @abstractmethod
    def _wrap(self, memory: Any) -> torch.Tensor:
        """uint8 [nbytes] over the memory; its storage holds a reference to it."""


class _Done:
    """A CPU has done what it was asked to do."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return


class MemfdSegment(Segment):
    """Anonymous memory on a CPU (memfd_create), sealed against a change of size, so that a peer cannot pull pages
    from under a view.
    """

    def __init__(self, identity: str, nbytes: int, descriptor: int) -> None:
        super().__init__(identity, nbytes)
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        try:
            self._map = mmap.mmap(descriptor, nbytes)
        except OSError as error:
            raise ResourceLimitError(f"a segment of {nbytes} bytes could not be mapped: {error.strerror}") from error
        with suppress(OSError):  # only a kernel built for it has huge pages in shared memory
            self._map.madvise(mmap.MADV_HUGEPAGE)

    @classmethod
    def allocate(cls, nbytes: int) -> "MemfdSegment":
        """New memory, zeroed; pages are taken when first touched."""
        identity = secrets.token_hex(16)
        try:
            descriptor = os.memfd_create("tandem-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise ResourceLimitError(f"no memory segment could be opened: {error.strerror}") from error
        try:
            os.ftruncate(descriptor, nbytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            os.close(descriptor)
            limit = "memory" if error.errno in (errno.ENOMEM, errno.ENOSPC) else "file size"
            raise ResourceLimitError(
                f"a segment of {nbytes} bytes exceeds the {limit} limit: {error.strerror}"
            ) from error
        return cls(identity, nbytes, descriptor)

    @classmethod
    def attach(cls, identity: str, nbytes: int, descriptor: int) -> "MemfdSegment":
        """Maps a peer's segment and takes the descriptor over.

        Raises:
            ProtocolError: it is no sealed memfd of that size.
        """
        try:
            sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        except OSError:
            sealed = 0
        size = os.fstat(descriptor).st_size
        if not sealed or size != nbytes:
            os.close(descriptor)
            raise ProtocolError(
                f"a segment of {size} bytes ({'sealed' if sealed else 'not sealed'}) came, expected {nbytes}, sealed"
            )
        return cls(identity, nbytes, descriptor)

    def enqueued(self) -> Work:
        return _Done()

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        yield self._descriptor

    def _memory(self) -> memoryview:
        return memoryview(self._map)

    def _wrap(self, memory: memoryview) -> torch.Tensor:
        return torch.frombuffer(memory, dtype=torch.uint8)


def allocate(device: torch.device, nbytes: int) -> Segment:
    """A new segment on the device ("cpu" or "cuda:N")."""
    if device.type == "cpu":
        return MemfdSegment.allocate(nbytes)
    from tandem_handoff.cuda import CudaSegment  # cuda-bindings is an extra

    return CudaSegment.allocate(device, nbytes)


def attach(device: torch.device, identity: str, nbytes: int, descriptor: int) -> Segment:
    """A peer's segment, mapped here. The descriptor is taken over, also on failure."""
    if device.type == "cpu":
        return MemfdSegment.attach(identity, nbytes, descriptor)
    from tandem_handoff.cuda import CudaSegment  # cuda-bindings is an extra

    return CudaSegment.attach(device, identity, nbytes, descriptor)
