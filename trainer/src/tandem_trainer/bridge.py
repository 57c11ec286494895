# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's configuration and names on one side, Megatron-core's on the other: mbridge, with what it lacks.

mbridge 0.15 expects Transformer Engine's layers and transformers 4's configuration; :class:`Overrides` also serves
Megatron's own layers and transformers 5.
"""

import importlib.util
from typing import Any, Protocol

import torch
from mbridge.core.bridge import _MODEL_REGISTRY, Bridge
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.tensor_parallel import set_defaults_if_not_set_tensor_model_parallel_attributes
from torch import Tensor
from transformers import PretrainedConfig

from tandem_api.errors import Problem, UserError
from tandem_trainer.attention import use_fused_attention

HAVE_TRANSFORMER_ENGINE = importlib.util.find_spec("transformer_engine") is not None

# The embedding is padded to a multiple of this, so that its shape is the same for usual tensor parallel sizes.
VOCABULARY_MULTIPLE = 8

# Dense models, each compared with transformers by a test.
SUPPORTED = ("llama", "qwen2", "qwen3")

_LOCAL_NAMES = {
    ".input_layernorm.weight": ".self_attention.linear_qkv.layer_norm_weight",
    ".pre_mlp_layernorm.weight": ".mlp.linear_fc1.layer_norm_weight",
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
        return use_fused_attention(
            get_gpt_decoder_block_spec(self.config, use_transformer_engine=False, vp_stage=vp_stage)
        )

    def _weight_name_mapping_mcore_to_hf(self, mcore_weights_name: str) -> list[str]:
        for local, name in _LOCAL_NAMES.items():
            mcore_weights_name = mcore_weights_name.replace(local, name)
        return super()._weight_name_mapping_mcore_to_hf(mcore_weights_name)

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


def build_bridge(hf_config: PretrainedConfig, dtype: torch.dtype, tensor: int) -> Bridge:
    """The bridge for a model: mbridge's, with :class:`Overrides` laid over it.

    Raises:
        UserError: the model's architecture, or an option of it, is not supported.
    """
    if hf_config.model_type not in SUPPORTED:
        known = ", ".join(SUPPORTED)
        raise UserError(Problem("config.json: model_type", f"{hf_config.model_type!r} is not supported; use {known}"))
    for option, name in _UNSUPPORTED.items():
        if getattr(hf_config, option, False):
            raise UserError(Problem(f"config.json: {option}", f"{name} is not supported; use a model without it"))
    base = _MODEL_REGISTRY[hf_config.model_type]
    kind = type(f"{base.__name__}WithOverrides", (Overrides, base), {})
    bridge = kind(hf_config, dtype=dtype, make_vocab_size_divisible_by=_vocabulary_multiple(tensor))
    bridge.set_extra_args(
        sequence_parallel=HAVE_TRANSFORMER_ENGINE and tensor > 1,
        # Dropout would make the policy that is trained another one than the policy that is rolled out.
        attention_dropout=0.0,
        hidden_dropout=0.0,
        perform_initialization=False,
        # The objectives weigh every sample by the whole minibatch: nothing is left to average over.
        calculate_per_token_loss=True,
        masked_softmax_fusion=False,
    )
    return bridge


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
