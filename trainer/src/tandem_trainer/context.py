# SPDX-License-Identifier: Apache-2.0
"""Context parallelism: every rank holds a part of every sequence.

A sequence is cut into 2n chunks for n ranks, and rank r holds the chunks r and 2n - 1 - r: then causal attention gives
all ranks the same work. It is the order that Megatron's rotary embedding and Transformer Engine's attention expect.
"""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor


def size() -> int:
    """How many ranks share a sequence."""
    found: int = parallel_state.get_context_parallel_world_size()
    return found


def own_columns(length: int, device: torch.device) -> Tensor:
    """int64 [length / n], ascending: which positions of a sequence this rank holds; 2n divides the ``length``."""
    return _columns(length, size(), device)[parallel_state.get_context_parallel_rank()]


def whole(own: Tensor, dim: int) -> Tensor:
    """All positions along ``dim``, in order. The gradient is summed over ranks: each makes a use of its own of them."""
    return _Whole.apply(own, dim, True)


def whole_for_all(own: Tensor, dim: int) -> Tensor:
    """All positions along ``dim``, in order, for ranks that all do the same with them: the gradient is not summed."""
    return _Whole.apply(own, dim, False)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, dim: int, summed: bool) -> Tensor:
        ctx.dim, ctx.summed = dim, summed
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(size())]
        dist.all_gather(parts, own.contiguous(), group=parallel_state.get_context_parallel_group())
        gathered = torch.cat(parts, dim)
        order = _columns(gathered.shape[dim], size(), own.device).flatten()
        return gathered.index_select(dim, order.argsort())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        if ctx.summed:
            gradient = gradient.contiguous()
            dist.all_reduce(gradient, group=parallel_state.get_context_parallel_group())
        columns = own_columns(gradient.shape[ctx.dim], gradient.device)
        return gradient.index_select(ctx.dim, columns), None, None


def _columns(length: int, ranks: int, device: torch.device) -> Tensor:
    """int64 [ranks, length / ranks]: the positions that each rank holds."""
    chunks = torch.arange(length, device=device).view(2 * ranks, -1)
    return torch.cat([chunks[:ranks], chunks[ranks:].flip(0)], dim=1)
