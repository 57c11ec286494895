# SPDX-License-Identifier: Apache-2.0
"""Leaving the device to the engine and coming back: gradients, optimizer state and weights of a policy.

Megatron-core's ``optimizer.offload_to_cpu`` goes through pageable memory, a tensor at a time, and parts float32 weights
from the buffer that the model computes with. Here whole storages are copied and freed under their tensors, which stay
what they are to each other.
"""

import gc
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from tandem_trainer.device import Device
from tandem_trainer.megatron_fixes import parts

_PIECE = 2**26
"""Bytes. Torch takes pinned memory by powers of two, whatever is asked for."""


class Parked:
    """Storages whose content can wait in pinned memory of the host, which is kept for the next time.

    All copies are enqueued at once, on a stream of their own: content leaves while others read it, and comes back while
    the device does something else.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pieces: list[Tensor] = []
        self._content: list[Tensor] = []
        self._away = False

    def copy_out(self, tensors: Iterable[Tensor]) -> None:
        """Begin to copy what lies under ``tensors``, which must not change before :meth:`bring_back`; nothing, if
        something is on its way or away already.
        """
        if self._content:
            return
        content = list(_storages(tensors))
        with self._device.beside():
            for here, there in self._places(content):
                there.copy_(here, non_blocking=True)
        self._content = content

    def free(self) -> bool:
        """Give the memory back to the device once its content is copied; whether there was any."""
        if self._away:
            return False
        self._device.copies.synchronize()
        for content in self._content:
            content.untyped_storage().resize_(0)
        self._away = bool(self._content)
        return self._away

    def bring_back(self) -> None:
        """Take memory again and begin to fill it; :meth:`wait` before it is used."""
        if self._away:
            for content in self._content:
                content.untyped_storage().resize_(len(content))
            with self._device.beside():
                for here, there in self._places(self._content):
                    here.copy_(there, non_blocking=True)
        self._content, self._away = [], False

    def wait(self) -> None:
        """Have what the caller enqueues next wait for all copies; the caller itself does not."""
        torch.cuda.current_stream().wait_stream(self._device.copies)

    def _places(self, contents: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Contents and their places on the host, in slices that lie in one piece."""
        place = 0
        for content in contents:
            done = 0
            while done < len(content):
                piece, start = divmod(place, _PIECE)
                if piece == len(self._pieces):
                    self._pieces.append(torch.empty(_PIECE, dtype=torch.uint8, pin_memory=True))
                here = content[done : done + _PIECE - start]
                yield here, self._pieces[piece][start : start + len(here)]
                done, place = done + len(here), place + len(here)


class Offload:
    """What a policy of Megatron-core's has on a device: its ``chunks``, wrapped in DDP, and its distributed optimizer.

    :meth:`leave` and :meth:`come_back` may follow each other in any order and number.
    """

    def __init__(self, chunks: list[Any], optimizer: Any, device: Device) -> None:
        self._buffers = [buffer for chunk in chunks for buffer in chunk.buffers + chunk.expert_parallel_buffers]
        self._optimizer = optimizer
        self._device = device
        self._weights, self._state = Parked(device), Parked(device)

    def begin(self) -> None:
        """Begin to copy the weights, which may still be read, so that less is left to do for :meth:`leave`."""
        self._weights.copy_out(buffer.param_data for buffer in self._buffers)

    def leave(self, *, weights: bool) -> None:
        """Free the gradients and the optimizer's state, and the ``weights`` if asked."""
        for buffer in self._buffers:
            buffer.offload_to_cpu(move_params=False, move_grads=True)
        self._state.copy_out(self._state_tensors())
        if weights:
            self.begin()
        freed = [self._state.free(), weights and self._weights.free()]
        if any(freed):  # for the collection takes a third of a second
            gc.collect()
            torch.cuda.empty_cache()

    def come_back(self, *, training: bool) -> None:
        """Bring the weights back, and for ``training`` the optimizer's state, which may come while the device computes
        (:meth:`wait_for_state`). Gradients come back as zeros.
        """
        self._weights.bring_back()
        self._weights.wait()
        if training:
            for buffer in self._buffers:
                buffer.reload_from_cpu(move_params=False, move_grads=True)
            self._state.bring_back()

    def wait_for_state(self) -> None:
        """Before the optimizer's state is used."""
        self._state.wait()

    def _state_tensors(self) -> Iterator[Tensor]:
        """The optimizer's on the device, but for float32 weights that it updates where the model has them."""
        weights = {buffer.param_data.untyped_storage().data_ptr() for buffer in self._buffers}
        for part in parts(self._optimizer):
            for group in part.optimizer.param_groups:
                for parameter in group["params"]:
                    for tensor in (parameter, *part.optimizer.state[parameter].values()):
                        there = isinstance(tensor, Tensor) and tensor.device.type == self._device.torch_device.type
                        if there and tensor.untyped_storage().data_ptr() not in weights:
                            yield tensor


def _storages(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each storage under ``tensors`` once, whole, as uint8 [bytes]."""
    seen: set[int] = set()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
