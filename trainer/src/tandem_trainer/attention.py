# SPDX-License-Identifier: Apache-2.0
"""Causal attention for Megatron's own layers, by torch's fused kernels.

Megatron's ``DotProductAttention`` writes out all scores of a sequence squared; Transformer Engine's, which does not,
is only there on images that have it.
"""

from typing import Any

from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class FusedCausalAttention(MegatronModule):
    """Drop-in for Megatron's core attention. Rows are padded on the right, so the causal mask is all that is needed."""

    def __init__(self, config: Any, *_: Any, softmax_scale: float | None = None, **__: Any) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        """Attend: query [s, b, heads, d], key and value [s, b, groups, d] -> [s, b, heads * d]."""
        dtype = query.dtype
        if query.device.type == "cpu":
            # The backward of the CPU kernel is five times slower in bfloat16 than in float32.
            query, key, value = query.float(), key.float(), value.float()
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        out = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.softmax_scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return out.to(dtype).permute(2, 0, 1, 3).flatten(2)


def use_fused_attention(block: Any) -> Any:
    """Replace the core attention in a decoder block's spec, in place."""
    for layer in block.layer_specs:
        layer.submodules.self_attention.submodules.core_attention = FusedCausalAttention
    return block
