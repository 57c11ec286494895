# SPDX-License-Identifier: Apache-2.0
"""Which tensors a vLLM model takes, by their Hugging Face names and full shapes.

vLLM's own loaders do not tell: finish_weight_update succeeds with a whole layer missing, and a tensor with rows to
spare is cut to fit.
"""

from collections.abc import Iterator

import torch
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import (
    LinearBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from tandem_handoff import Expected

Shape = tuple[int, ...] | None


def tied_heads(model: torch.nn.Module) -> dict[str, ParallelLMHead]:
    """Output heads that share their parameter with the input embedding, by module name. Call it outside an update:
    during one the sharing is suspended.
    """
    embeddings = {id(module.weight) for module in model.modules() if type(module) is VocabParallelEmbedding}
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, ParallelLMHead) and id(module.weight) in embeddings
    }


def expected_tensors(model: torch.nn.Module) -> dict[str, Expected] | None:
    """What a complete handoff into this model consists of, or None for a model that renames its checkpoint's tensors or
    has experts: of those only whole layers can be missed.

    Fused parameters (qkv_proj, gate_up_proj) are taken apart into the checkpoint's. Shapes are of full
    tensors, before the engine's tensor parallelism; a shape is None where the layer keeps too little to tell. Call it
    outside an update.
    """
    if not _takes_checkpoint_names(model):
        return None
    tied = {f"{name}.weight" for name in tied_heads(model)}
    expected: dict[str, Expected] = {}
    for path, module in model.named_modules():
        optional = is_deferred_attention_layer(module)  # scales of quantised attention, rarely in a checkpoint
        for parameter, meta in get_layerwise_info(module).restore_metadata[0].items():
            for name, shape in _checkpoint_tensors(model, path, module, parameter, meta):
                expected[name] = Expected(shape, required=not optional and name not in tied)
    return expected


def _checkpoint_tensors(
    model: torch.nn.Module, path: str, module: torch.nn.Module, parameter: str, meta: torch.Tensor
) -> Iterator[tuple[str, Shape]]:
    """Names and shapes in the checkpoint of what fills one parameter."""
    full_name = f"{path}.{parameter}" if path else parameter
    parent, _, leaf = path.rpartition(".")
    parts = getattr(model, "packed_modules_mapping", {}).get(leaf)
    if isinstance(module, LinearBase) and parts and len(parts) > 1:
        for part, rows in zip(parts, _part_rows(module, len(parts)), strict=True):
            yield (
                f"{parent}.{part}.{parameter}" if parent else f"{part}.{parameter}",
                _linear_shape(module, parameter, rows),
            )
    elif isinstance(module, LinearBase):
        yield full_name, _linear_shape(module, parameter, module.output_size)
    elif isinstance(module, VocabParallelEmbedding):
        rows = module.org_vocab_size
        yield full_name, (rows, module.embedding_dim) if parameter == "weight" else (rows,)
    else:
        yield full_name, None if meta.is_meta and hasattr(meta, "output_dim") else tuple(meta.shape)


def _part_rows(module: LinearBase, parts: int) -> list[int | None]:
    """Output rows of each tensor that a fused linear layer is made of, over all ranks."""
    if isinstance(module, QKVParallelLinear) and parts == 3:
        return [
            module.total_num_heads * module.head_size,
            module.total_num_kv_heads * module.head_size,
            module.total_num_kv_heads * module.v_head_size,
        ]
    if isinstance(module, MergedColumnParallelLinear) and parts == len(module.output_sizes):
        return list(module.output_sizes)
    return [None] * parts


def _linear_shape(module: LinearBase, parameter: str, rows: int | None) -> Shape:
    if rows is None or not isinstance(module.quant_method, UnquantizedLinearMethod):
        return None
    return {"weight": (rows, module.input_size), "bias": (rows,)}.get(parameter)


def _takes_checkpoint_names(model: torch.nn.Module) -> bool:
    """Whether parameters, fused ones taken apart, are called as in the checkpoint: no renames, no fused experts."""
    if any(isinstance(module, RoutedExperts) for module in model.modules()):
        return False
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    return mapper is None or not any(
        (
            mapper.orig_to_new_renaming,
            mapper.orig_to_new_regex,
            mapper.orig_to_new_substr,
            mapper.orig_to_new_prefix,
            mapper.orig_to_new_suffix,
        )
    )
