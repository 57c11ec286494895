# SPDX-License-Identifier: Apache-2.0
"""Other ways of bringing weights into a running vLLM, for comparison. Runs inside vLLM's worker."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from tandem_sidecar.engine_plugin.report import HandoffReporter

Layout = list[tuple[str, str, list[int]]]
"""Name, dtype and shape of each tensor of a bucket."""


class Baselines(HandoffReporter):
    """A worker extension, called by `POST /collective_rpc`."""

    reload_weights: Any
    _group: Any = None

    def baseline_join(self, port: int) -> None:
        """Becomes rank 1 of a gloo group of two whose store listens on the port."""
        self._group = join(port, 1)

    def baseline_broadcast(self, buckets: list[Layout]) -> None:
        """Loads what rank 0 broadcasts, bucket by bucket."""
        self.reload_weights(weights_iterator=self._broadcast(buckets))

    def _broadcast(self, buckets: list[Layout]) -> Iterator[tuple[str, torch.Tensor]]:
        for layout in buckets:
            # A new buffer each time: vLLM keeps references to tensors of layers that are not complete.
            packed = torch.empty(nbytes(layout), dtype=torch.uint8)
            broadcast(self._group, packed)
            yield from unpacked(packed, layout)


def join(port: int, rank: int) -> Any:
    """The gloo group of rank 0 (the trainer) and 1 (the engine)."""
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0, timeout=timedelta(seconds=120))
    return dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=120))


def broadcast(group: Any, packed: torch.Tensor) -> None:
    """From rank 0."""
    options = dist.BroadcastOptions()
    options.rootRank = 0
    group.broadcast([packed], options).wait()


def nbytes(layout: Layout) -> int:
    """Bytes of a packed bucket."""
    return sum(_size(dtype, shape) for _, dtype, shape in layout)


def unpacked(packed: torch.Tensor, layout: Layout) -> Iterator[tuple[str, torch.Tensor]]:
    """Views of a bucket's tensors."""
    offset = 0
    for name, dtype, shape in layout:
        size = _size(dtype, shape)
        yield name, packed[offset : offset + size].view(getattr(torch, dtype)).view(shape)
        offset += size


def _size(dtype: str, shape: list[int]) -> int:
    itemsize: int = getattr(torch, dtype).itemsize
    return torch.Size(shape).numel() * itemsize
