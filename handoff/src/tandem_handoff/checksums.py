# SPDX-License-Identifier: Apache-2.0
"""Content checks that run where the tensor lies, at memory speed on a CPU and on a GPU."""

from functools import cache

import torch

_BLOCK_WORDS = 2**17
"""Words of 8 bytes in a block: the products of one block (1 MiB) stay in a CPU's cache."""


def checksum(tensor: torch.Tensor) -> int:
    """A 64-bit checksum of a contiguous tensor's bytes: a multilinear hash with odd 64-bit weights, modulo 2^64.

    Every change within one aligned word of 8 bytes changes it, as an odd weight has an inverse; other accidental
    changes and transpositions go unseen with a probability of about 2^-63 (Carter and Wegman 1979). It guards against
    accidents, not against an adversary.
    """
    content = tensor.detach().reshape(-1).view(torch.uint8)
    if content.storage_offset() % 8:
        content = content.clone()
    whole = content.numel() // 8 * 8
    last = torch.zeros(8, dtype=torch.uint8, device=tensor.device)
    last[: content.numel() - whole] = content[whole:]
    weights = _odd_weights(tensor.device)
    sums = _weighted_sums(content[:whole].view(torch.int64), weights)
    while sums.numel() > _BLOCK_WORDS:
        sums = _weighted_sums(sums, weights ^ 2)
    total = _weighted_sums(torch.cat([sums, last.view(torch.int64)]), weights ^ 2).sum()
    return int(total.item()) % 2**64


def _weighted_sums(words: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """int64 [blocks]: each block's words times the weights, summed modulo 2^64."""
    if not words.numel():
        return words
    return torch.stack([(block * weights[: block.numel()]).sum() for block in words.split(_BLOCK_WORDS)])


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; true for integers."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    flat = tensor.reshape(-1)
    if tensor.element_size() == 1:
        return all(is_finite(block.to(torch.float32)) for block in flat.split(_BLOCK_WORDS))
    low, high = torch.aminmax(flat)
    return bool((torch.isfinite(low) & torch.isfinite(high)).item())


@cache
def _odd_weights(device: torch.device) -> torch.Tensor:
    """int64 [_BLOCK_WORDS], all odd, the same in every process (SplitMix64's output function over a counter)."""
    state = torch.arange(1, _BLOCK_WORDS + 1, dtype=torch.int64) * -7046029254386353131
    state = (state ^ _shift(state, 30)) * -4658895280553007687
    state = (state ^ _shift(state, 27)) * -7723592293110705685
    return ((state ^ _shift(state, 31)) | 1).to(device)


def _shift(words: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical right shift; torch's own keeps the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
