# SPDX-License-Identifier: Apache-2.0
"""Causal attention for Megatron's own layers, by torch's fused kernels.

Megatron's ``DotProductAttention`` writes out all scores of a sequence squared; Transformer Engine's, which does not,
is only there on images that have it.
"""

from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tandem_trainer import context
from tandem_trainer.norm import RMSNorm


class FusedCausalAttention(MegatronModule):
    """Drop-in for Megatron's core attention. Rows are padded on the right, so the causal mask is all that is needed."""

    def __init__(self, config: Any, *_: Any, softmax_scale: float | None = None, **__: Any) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        """Attend: query [s, b, heads, d], key and value [s, b, groups, d] -> [s, b, heads * d].

        With context parallelism s is this rank's part of the sequence, and keys and values of all ranks are gathered.
        """
        dtype = query.dtype
        if query.device.type == "cpu":
            # The backward of the CPU kernel is five times slower in bfloat16 than in float32.
            query, key, value = query.float(), key.float(), value.float()
        mask = None
        if context.size() > 1:
            key, value = context.whole(key, 0), context.whole(value, 0)
            mask = _seen(len(key), key.device)
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        out = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.softmax_scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.to(dtype).permute(2, 0, 1, 3).flatten(2)


def _seen(length: int, device: torch.device) -> Tensor:
    """bool [own positions, length]: which positions each of this rank's may look at."""
    return context.own_columns(length, device)[:, None] >= torch.arange(length, device=device)


def use_own_layers(block: Any) -> Any:
    """Replace the core attention and the norms in a decoder block's spec, in place."""
    block.layer_norm = RMSNorm
    for layer in block.layer_specs:
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
        attention = layer.submodules.self_attention.submodules
        attention.core_attention = FusedCausalAttention
        if attention.q_layernorm is WrappedTorchNorm:
            attention.q_layernorm = attention.k_layernorm = RMSNorm
    return block
