# SPDX-License-Identifier: Apache-2.0
"""Weights under their Hugging Face names: drawn from a seed, gathered from all ranks, written to a directory."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from tandem_trainer.bridge import expert_name, is_expert

SHARD_BYTES = 4 << 30
_KEPT_FILES = ("tokenizer*", "*.jinja", "vocab*", "merges.txt", "special_tokens_map.json", "generation_config.json")


class SeededWeights:
    """Random weights that depend on the seed and the tensor's name alone, so that every layout starts from the same.

    Norms are ones, biases zeros, the rest normal with the configuration's ``initializer_range``.
    """

    def __init__(self, hf_config: PretrainedConfig, seed: int) -> None:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(hf_config)
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, tensor in model.state_dict().items():
            self._shapes |= _checkpoint_shapes(name, tuple(tensor.shape))
        self._std = getattr(hf_config, "initializer_range", 0.02)
        self._seed = seed

    def names(self) -> list[str]:
        """Of all tensors, a tied output layer's among them."""
        return list(self._shapes)

    def load_one_hf_weight(self, name: str) -> Tensor:
        """Draw this tensor, in float32."""
        shape = self._shapes[name]
        if name.endswith("norm.weight"):
            return torch.ones(shape)
        if name.endswith(".bias"):
            return torch.zeros(shape)
        own_seed = hashlib.blake2b(f"{self._seed}:{name}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(own_seed))
        return torch.randn(shape, generator=generator) * self._std


def _checkpoint_shapes(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a checkpoint of a parameter of transformers, which keeps a layer's experts in one."""
    path, _, leaf = name.rpartition(".experts.")
    if leaf == "gate_up_proj":
        experts, rows, columns = shape
        parts: dict[str, tuple[int, ...]] = {"gate_proj": (rows // 2, columns), "up_proj": (rows // 2, columns)}
    elif leaf == "down_proj":
        experts, *rest = shape
        parts = {leaf: tuple(rest)}
    else:
        return {name: shape}
    return {f"{path}.experts.{n}.{part}.weight": size for n in range(experts) for part, size in parts.items()}


@dataclass(frozen=True, slots=True)
class _Shard:
    """One rank's part of a Megatron parameter, as all ranks know it."""

    stage: int
    local_name: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    partition: int | None


class FullWeights:
    """Full tensors under Hugging Face names, gathered from all tensor, pipeline and expert parallel ranks.

    Iterating is collective over the world and yields the same names in the same order on every rank; each tensor is
    the caller's until it asks for the next one. What lies where is asked once, not for every tensor, as mbridge does.
    """

    def __init__(self, bridge: Any, model: torch.nn.Module) -> None:
        self._bridge = bridge
        self._parameters = dict(model.named_parameters())
        self._shards = self._survey(model)

    def _survey(self, model: torch.nn.Module) -> list[_Shard]:
        stage = parallel_state.get_pipeline_model_parallel_rank()
        names = self._bridge._weight_name_mapping_mcore_local_to_global(model, consider_ep=False)
        own = [
            _Shard(
                stage,
                local_name,
                names[local_name],
                tuple(parameter.shape),
                parameter.dtype,
                parameter.partition_dim if getattr(parameter, "tensor_model_parallel", False) else None,
            )
            for local_name, parameter in self._parameters.items()
        ]
        everyone: list[list[_Shard]] = [[] for _ in range(parallel_state.get_pipeline_model_parallel_world_size())]
        dist.all_gather_object(everyone, own, group=parallel_state.get_pipeline_model_parallel_group())
        # A tied output layer of the last stage is the first stage's embedding once more.
        first: dict[str, _Shard] = {}
        for shard in (shard for shards in everyone for shard in shards):
            first.setdefault(self._bridge._weight_name_mapping_mcore_to_hf(shard.name)[0], shard)
        return list(first.values())

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for shard in self._shards:
            tensor = self._across_stages(shard)
            if is_expert(shard.name):
                whole = self._across_expert_ranks(shard, tensor)
            else:
                whole = {shard.name: self._across_tensor_ranks(shard, tensor)}
            for name, weight in whole.items():
                yield from zip(*self._bridge._weight_to_hf_format(name, weight), strict=True)

    def _across_stages(self, shard: _Shard) -> Tensor:
        group = parallel_state.get_pipeline_model_parallel_group()
        own = shard.stage == parallel_state.get_pipeline_model_parallel_rank()
        tensor = (
            self._parameters[shard.local_name].detach()
            if own
            else torch.empty(shard.shape, dtype=shard.dtype, device=torch.cuda.current_device())
        )
        if group.size() > 1:
            dist.broadcast(tensor, src=dist.get_global_rank(group, shard.stage), group=group)
        return tensor

    def _across_expert_ranks(self, shard: _Shard, tensor: Tensor) -> dict[str, Tensor]:
        """The experts that have this one's place on each rank, by their names; each is whole on its rank."""
        group = parallel_state.get_expert_model_parallel_group()
        if group.size() == 1:
            return {shard.name: tensor}
        parts = [torch.empty_like(tensor) for _ in range(group.size())]
        dist.all_gather(parts, tensor.contiguous(), group=group)
        local = self._bridge.local_experts
        return {expert_name(shard.name, rank * local): part for rank, part in enumerate(parts)}

    def _across_tensor_ranks(self, shard: _Shard, tensor: Tensor) -> Tensor:
        group = parallel_state.get_tensor_model_parallel_group()
        if shard.partition is None or group.size() == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(group.size())]
        dist.all_gather(parts, tensor.contiguous(), group=group)
        tensor.tensor_model_parallel, tensor.partition_dim = True, shard.partition
        merged: Tensor = self._bridge._weight_merge_across_tp(shard.name, parts, tensor)
        return merged


def export_hugging_face(weights: FullWeights, hf_config: PretrainedConfig, source: Path, directory: Path) -> None:
    """Write a directory that plain transformers loads: config, tokenizer files of ``source``, safetensors.

    Collective; rank 0 writes, and ``directory`` appears whole or not at all.
    """
    if dist.get_rank() != 0:
        for _ in weights:
            pass
        return
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _write_shards(weights, unfinished)
    hf_config.save_pretrained(unfinished)
    for pattern in _KEPT_FILES:
        for file in source.glob(pattern):
            shutil.copy(file, unfinished / file.name)
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)


def _write_shards(weights: FullWeights, directory: Path) -> None:
    files: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        save_file(pending, directory / f"shard-{len(files)}.safetensors", metadata={"format": "pt"})
        files.append(list(pending))
        pending.clear()

    for name, tensor in weights:
        if pending and sum(t.nbytes for t in pending.values()) + tensor.nbytes > SHARD_BYTES:
            flush()
        pending[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        total += tensor.nbytes
    flush()
    _name_shards(files, directory, total)


def _name_shards(files: list[list[str]], directory: Path, total: int) -> None:
    if len(files) == 1:
        (directory / "shard-0.safetensors").rename(directory / "model.safetensors")
        return
    where: dict[str, str] = {}
    for number, names in enumerate(files):
        file = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        (directory / f"shard-{number}.safetensors").rename(directory / file)
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
