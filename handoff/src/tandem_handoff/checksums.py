# SPDX-License-Identifier: Apache-2.0
"""Content checks that run where the tensor lies, at memory speed on a CPU and on a GPU."""

from functools import cache

import torch

_BLOCK_WORDS = 2**16
"""Words of 8 bytes in a block: the weights (512 KiB) stay in a CPU's cache."""


def checksum(tensor: torch.Tensor) -> int:
    """A 64-bit checksum of a contiguous tensor's bytes: a multilinear hash with odd 64-bit weights, modulo 2^64.

    Every change within one aligned word of 8 bytes changes it, as an odd weight has an inverse. Other accidental
    changes go unseen with a probability below 2^-30 (Carter and Wegman 1979; the worst case is two words that differ in
    their top bits only). It guards against accidents, not against an adversary.
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
    scratch = torch.empty_like(weights)
    return torch.stack([_weighted_sum(block, weights, scratch) for block in words.split(_BLOCK_WORDS)])


def _weighted_sum(words: torch.Tensor, weights: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
    """The sum over one block of at most len(weights) words; scratch is overwritten."""
    weights, mixed = weights[: words.numel()], scratch[: words.numel()]
    # Modulo 2^64 the top bits of a word meet only the lowest of its weight, and floats often have no others.
    torch.bitwise_right_shift(words, 32, out=mixed)
    mixed ^= words
    if words.device.type == "cpu":  # where dot takes integers, and is faster than a product and a sum
        return torch.dot(mixed, weights)
    return mixed.mul_(weights).sum()


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; true for integers."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    flat = tensor.reshape(-1)
    if tensor.element_size() == 1:  # 8-bit floats have no arithmetic of their own
        return all(is_finite(block.to(torch.float32)) for block in flat.split(_BLOCK_WORDS))
    if bool(
        torch.isfinite(flat.sum()).item()
    ):  # several times faster than looking at each; NaN and infinity survive a sum
        return True
    low, high = torch.aminmax(flat)  # a sum of finite numbers may overflow
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
