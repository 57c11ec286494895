# SPDX-License-Identifier: Apache-2.0
"""How much device memory is held, by measurement and not by what a call returned."""

import pynvml


class DeviceMemory:
    """The memory in use on the accelerators that this container sees, through NVML."""

    def __init__(self) -> None:
        pynvml.nvmlInit()
        self._devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]

    def used(self) -> int:
        """Bytes in use on the fullest device, by any process: in a container NVML cannot tell whose they are."""
        return max(int(pynvml.nvmlDeviceGetMemoryInfo(device).used) for device in self._devices)


class Residuals:
    """What one engine process still held after each of its releases: tells a leak before it fills the budget.

    An engine holds some memory for good: its context, its graphs. What comes on top with every release does not stop by
    itself, and grows over days.
    """

    _FEWEST = 8

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._first = self._last = 0
        self._releases = 0

    def begin(self) -> None:
        """Another process is started."""
        self._releases = 0

    def note(self, residual: int) -> None:
        """A release left so many bytes in use."""
        self._first = residual if self._releases == 0 else self._first
        self._last = residual
        self._releases += 1

    @property
    def grow(self) -> bool:
        """Whether half of what the first release left free of the budget has gone since, over several releases."""
        return self._releases >= self._FEWEST and 2 * (self._last - self._first) > self._budget - self._first
