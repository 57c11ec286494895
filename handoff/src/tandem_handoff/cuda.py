# SPDX-License-Identifier: Apache-2.0
"""Segments in GPU memory: allocations of CUDA's virtual memory management, shared by POSIX descriptors.

Unlike cudaIpc handles they need neither a shared IPC namespace nor a shared PID namespace, are independent of torch's
caching allocator (so expandable_segments can stay on), and are freed by the driver when the last process that mapped
them ends.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from cuda.bindings import driver

from tandem_handoff.errors import ResourceLimitError
from tandem_handoff.segments import Segment, Work

_POSIX = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


class CudaSegment(Segment):
    """Memory of one GPU. Both processes must see that GPU; the ordinals may differ."""

    def __init__(self, identity: str, nbytes: int, device: torch.device, handle: Any) -> None:
        super().__init__(identity, nbytes)
        self._device = device
        self._mapping = _Mapping(handle, _round_up(nbytes, _granularity(device)), device)

    @classmethod
    def allocate(cls, device: torch.device, nbytes: int) -> "CudaSegment":
        """New memory, its content undefined."""
        _bind_context(device)
        torch.cuda.empty_cache()  # torch keeps what it has freed for itself
        size = _round_up(nbytes, _granularity(device))
        handle = _call(driver.cuMemCreate, size, _properties(device), 0)
        return cls(secrets.token_hex(16), nbytes, device, handle)

    @classmethod
    def attach(cls, device: torch.device, identity: str, nbytes: int, descriptor: int) -> "CudaSegment":
        """Maps a peer's segment; the descriptor is closed, as the handle keeps the memory."""
        try:
            _bind_context(device)
            handle = _call(driver.cuMemImportFromShareableHandle, descriptor, _POSIX)
        finally:
            os.close(descriptor)
        return cls(identity, nbytes, device, handle)

    def enqueued(self) -> Work:
        return torch.cuda.current_stream(self._device).record_event()

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        descriptor = int(_call(driver.cuMemExportToShareableHandle, self._mapping.handle, _POSIX, 0))
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _memory(self) -> "_Window":
        return _Window(self._mapping, self.nbytes)

    def _wrap(self, memory: "_Window") -> torch.Tensor:
        return torch.as_tensor(memory, device=self._device)


class _Mapping:
    """A handle mapped into this process; unmapped and released when nothing refers to it any more. Takes the handle
    over, also on failure.
    """

    def __init__(self, handle: Any, size: int, device: torch.device) -> None:
        self.handle = handle
        self._size = size
        self._device = device
        self._mapped = False
        self.address = _call(driver.cuMemAddressReserve, size, 0, 0, 0)
        _call(driver.cuMemMap, self.address, size, 0, handle, 0)
        self._mapped = True
        access = driver.CUmemAccessDesc()
        access.location = _properties(device).location
        access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        _call(driver.cuMemSetAccess, self.address, size, [access], 1)

    def __del__(self) -> None:
        address = getattr(self, "address", None)
        if self._mapped:
            # Unlike cudaFree, unmapping does not wait for what a broken handoff left running.
            with suppress(RuntimeError):
                torch.cuda.synchronize(self._device)
            driver.cuMemUnmap(address, self._size)
        if address is not None:
            driver.cuMemAddressFree(address, self._size)
        driver.cuMemRelease(self.handle)


class _Window:
    """What torch wraps: holds the mapping for as long as a tensor's storage holds the window."""

    def __init__(self, mapping: _Mapping, nbytes: int) -> None:
        self._mapping = mapping
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (int(mapping.address), False),
            "strides": None,
            "version": 3,
        }


def _properties(device: torch.device) -> Any:
    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = device.index or 0
    properties.requestedHandleTypes = _POSIX
    return properties


def _granularity(device: torch.device) -> int:
    flag = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
    return int(_call(driver.cuMemGetAllocationGranularity, _properties(device), flag))


def _bind_context(device: torch.device) -> None:
    torch.zeros(1, device=device)  # torch creates the primary context and makes it current


def _round_up(size: int, granularity: int) -> int:
    return -(-size // granularity) * granularity


def _call(function: Any, *arguments: Any) -> Any:
    status, *results = function(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise ResourceLimitError(f"{function.__name__} failed: {status.name}")
    return results[0] if results else None
