# SPDX-License-Identifier: Apache-2.0
"""How much device memory is held, by measurement and not by what a call returned."""

import pynvml


class DeviceMemory:
    """The memory in use on the accelerators that this container sees, through NVML."""

    def __init__(self) -> None:
        pynvml.nvmlInit()
        self._devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]

    def used(self) -> int:
        """Bytes in use on the fullest device."""
        return max(int(pynvml.nvmlDeviceGetMemoryInfo(device).used) for device in self._devices)
