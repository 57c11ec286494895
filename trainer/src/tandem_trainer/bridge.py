# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's configuration and names on one side, Megatron-core's on the other: mbridge, with what it lacks.

mbridge 0.15 expects Transformer Engine's layers and transformers 4's configuration; :class:`Overrides` also serves
Megatron's own layers and transformers 5.
"""

import importlib.util
import re
from typing import Any, Protocol

import torch
from mbridge.core.bridge import _MODEL_REGISTRY, Bridge
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.tensor_parallel import set_defaults_if_not_set_tensor_model_parallel_attributes
from torch import Tensor
from transformers import PretrainedConfig

from tandem_api.errors import Problem, UserError
from tandem_api.spec.hybrid import Recompute
from tandem_trainer.attention import use_own_layers
from tandem_trainer.parallel import Layout

HAVE_TRANSFORMER_ENGINE = importlib.util.find_spec("transformer_engine") is not None

# The embedding is padded to a multiple of this, so that its shape is the same for usual tensor parallel sizes.
VOCABULARY_MULTIPLE = 8

# Each is compared with transformers by a test.
SUPPORTED = ("llama", "qwen2", "qwen3", "qwen3_moe", "qwen2_moe")

_LOCAL_NAMES = {".input_layernorm.weight": ".self_attention.linear_qkv.layer_norm_weight"}
_LOCAL_DENSE_NAMES = {".pre_mlp_layernorm.weight": ".mlp.linear_fc1.layer_norm_weight"}
# An expert's weight by Megatron's own layers, and by Transformer Engine's.
_LOCAL_EXPERT = re.compile(r"(.*\.mlp\.experts)\.local_experts\.(\d+)\.(linear_fc[12])\.weight")
_GROUPED_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(linear_fc[12])\.weight(\d+)")
_RECOMPUTE: dict[Recompute, dict[str, Any]] = {
    Recompute.NONE: {},
    # Not the attention, which is Megatron's own choice: fused kernels keep no scores, and the MLP is what is large.
    Recompute.SELECTIVE: {"recompute_granularity": "selective", "recompute_modules": ["mlp", "moe"]},
    Recompute.FULL: {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}
_UNSUPPORTED = {"use_sliding_window": "sliding window attention", "mlp_bias": "biases in the MLP"}


class WeightSource(Protocol):
    """Where the bridge takes weights from, as full tensors by their Hugging Face name."""

    def load_one_hf_weight(self, name: str) -> Tensor: ...


class Overrides(Bridge):
    """What Tandem's bridges do differently from mbridge's."""

    source: WeightSource | None = None

    def _adjust_mapping_for_shared_weights(self) -> None:
        # mbridge changes the class's own mapping, and with it every later model of the process.
        self._DIRECT_MAPPING: dict[str, str] = self._DIRECT_MAPPING.copy()
        super()._adjust_mapping_for_shared_weights()
        if self.hf_config.tie_word_embeddings:
            self._DIRECT_MAPPING["output_layer.weight"] = "model.embed_tokens.weight"

    def _get_transformer_layer_spec(self, vp_stage: int | None = None) -> Any:
        if HAVE_TRANSFORMER_ENGINE:
            return super()._get_transformer_layer_spec(vp_stage)
        self.has_vp_stage = True
        return use_own_layers(get_gpt_decoder_block_spec(self.config, use_transformer_engine=False, vp_stage=vp_stage))

    def _weight_name_mapping_mcore_to_hf(self, mcore_weights_name: str) -> list[str]:
        names = _LOCAL_NAMES if has_experts(self.hf_config) else _LOCAL_NAMES | _LOCAL_DENSE_NAMES
        for local, name in names.items():
            mcore_weights_name = mcore_weights_name.replace(local, name)
        return super()._weight_name_mapping_mcore_to_hf(mcore_weights_name)

    def _weight_name_mapping_mcore_local_to_global(
        self, model: torch.nn.Module, consider_ep: bool = True
    ) -> dict[str, str]:
        names: dict[str, str] = super()._weight_name_mapping_mcore_local_to_global(model, consider_ep=False)
        first = self.mpu.ep_rank * self.local_experts if consider_ep else 0
        return {local: expert_name(name, first) for local, name in names.items()}

    @property
    def local_experts(self) -> int:
        """Experts of each layer on this rank."""
        return (self.config.num_moe_experts or 0) // self.mpu.ep_size

    def load_weights(self, models: list[torch.nn.Module], weights_path: str, memory_efficient: bool = True) -> None:
        """Every rank reads what it holds a part of. mbridge's reads on one tensor parallel rank and scatters, which
        takes the experts of a rank for those of its neighbours.
        """
        source = self._get_safetensor_io(weights_path)
        for model in models:
            state = model.state_dict()
            for local, name in self._weight_name_mapping_mcore_local_to_global(model).items():
                read = [source.load_one_hf_weight(hf) for hf in self._weight_name_mapping_mcore_to_hf(name)]
                full = self._weight_to_mcore_format(name, read)
                whole_on_rank = is_expert(name)
                size, rank = (1, 0) if whole_on_rank else (self.mpu.tp_size, self.mpu.tp_rank)
                state[local].copy_(list(self._weight_split_across_tp(name, full, state[local], size))[rank])

    def _get_gptmodel_args(self) -> dict[str, Any]:
        return {
            "vocab_size": self.hf_config.vocab_size,
            "max_sequence_length": self.hf_config.max_position_embeddings,
            "position_embedding_type": "rope",
            **rope_arguments(self.hf_config.rope_parameters),
        }

    def _get_safetensor_io(self, weights_path: str) -> WeightSource:
        return self.source or super()._get_safetensor_io(weights_path)


def rope_arguments(parameters: dict[str, Any]) -> dict[str, Any]:
    """GPTModel's arguments for the rotary embedding that a Hugging Face configuration describes.

    Raises:
        UserError: Megatron-core has no such scaling.
    """
    kind = parameters.get("rope_type", "default")
    arguments: dict[str, Any] = {"rotary_base": parameters["rope_theta"]}
    if kind == "default":
        return arguments
    if kind == "linear":
        return arguments | {"seq_len_interpolation_factor": parameters["factor"]}
    bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    if kind == "llama3" and all(parameters.get(name) == value for name, value in bands.items()):
        return arguments | {"rope_scaling": True, "rope_scaling_factor": parameters["factor"]}
    message = f"{parameters} is not supported; default, linear and llama3 with {bands} are"
    raise UserError(Problem("config.json: rope_parameters", message))


def has_experts(hf_config: PretrainedConfig) -> bool:
    """Whether the model is a mixture of experts."""
    return bool(getattr(hf_config, "num_experts", 0))


def is_expert(name: str) -> bool:
    """Whether a Megatron parameter, by mbridge's name, belongs to one expert (shared ones do not count)."""
    return ".mlp.experts." in name


def expert_name(name: str, first: int) -> str:
    """mbridge's name of a parameter; an expert's number counts from the ``first`` of this rank."""
    if match := _LOCAL_EXPERT.fullmatch(name):
        path, number, layer = match.groups()
    elif match := _GROUPED_EXPERT.fullmatch(name):
        path, layer, number = match.groups()
    else:
        return name
    return f"{path}.{layer}.weight{first + int(number)}"


def build_bridge(
    hf_config: PretrainedConfig, dtype: torch.dtype, layout: Layout, recompute: Recompute = Recompute.NONE
) -> Bridge:
    """The bridge for a model: mbridge's, with :class:`Overrides` laid over it.

    Raises:
        UserError: the model's architecture, or an option of it, is not supported, or not on this layout.
    """
    if hf_config.model_type not in SUPPORTED:
        known = ", ".join(SUPPORTED)
        raise UserError(Problem("config.json: model_type", f"{hf_config.model_type!r} is not supported; use {known}"))
    for option, name in _UNSUPPORTED.items():
        if getattr(hf_config, option, False):
            raise UserError(Problem(f"config.json: {option}", f"{name} is not supported; use a model without it"))
    _check_experts(hf_config, layout)
    base = _MODEL_REGISTRY[hf_config.model_type]
    kind = type(f"{base.__name__}WithOverrides", (Overrides, base), {})
    bridge = kind(hf_config, dtype=dtype, make_vocab_size_divisible_by=_vocabulary_multiple(layout.tensor))
    bridge.set_extra_args(
        # Megatron trains experts on several tensor parallel ranks only if these share the sequence.
        sequence_parallel=layout.tensor > 1 and (HAVE_TRANSFORMER_ENGINE or has_experts(hf_config)),
        # Dropout would make the policy that is trained another one than the policy that is rolled out.
        attention_dropout=0.0,
        hidden_dropout=0.0,
        perform_initialization=False,
        # The objectives weigh every sample by the whole minibatch: nothing is left to average over.
        calculate_per_token_loss=True,
        masked_softmax_fusion=False,
        **_RECOMPUTE[recompute],
        **_expert_arguments(hf_config),
    )
    return bridge


def _expert_arguments(hf_config: PretrainedConfig) -> dict[str, Any]:
    """What Megatron must know about experts that mbridge takes for given."""
    if not has_experts(hf_config):
        return {}
    return {
        "moe_router_pre_softmax": not hf_config.norm_topk_prob,
        "moe_grouped_gemm": HAVE_TRANSFORMER_ENGINE,
        "moe_shared_expert_overlap": False,
        "persist_layer_norm": HAVE_TRANSFORMER_ENGINE,
        "moe_shared_expert_gate": hf_config.model_type == "qwen2_moe",
    }


def _check_experts(hf_config: PretrainedConfig, layout: Layout) -> None:
    if not has_experts(hf_config):
        if layout.expert > 1:
            raise UserError(Problem("spec.trainer.parallelism.expert", "must be 1: the model has no experts"))
        return
    if hf_config.num_experts % layout.expert:
        message = f"{layout.expert} does not divide the model's {hf_config.num_experts} experts"
        raise UserError(Problem("spec.trainer.parallelism.expert", message))
    if getattr(hf_config, "mlp_only_layers", None) or getattr(hf_config, "decoder_sparse_step", 1) != 1:
        message = "layers without experts among layers with experts are not supported"
        raise UserError(Problem("config.json: mlp_only_layers, decoder_sparse_step", message))


def build_stage(bridge: Bridge) -> Any:
    """This pipeline stage of the bridge's model, on the device, its weights undefined."""
    provide = bridge._model_provider([])
    module = provide(
        pre_process=parallel_state.is_pipeline_first_stage(), post_process=parallel_state.is_pipeline_last_stage()
    )
    for parameter in module.parameters():
        set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
    return module.cuda(torch.cuda.current_device())


def _vocabulary_multiple(tensor: int) -> int:
    return VOCABULARY_MULTIPLE if VOCABULARY_MULTIPLE % tensor == 0 else VOCABULARY_MULTIPLE * tensor
