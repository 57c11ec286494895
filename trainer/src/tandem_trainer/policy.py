# SPDX-License-Identifier: Apache-2.0
"""The policy: a Megatron-core GPT model with DDP and its distributed optimizer, asked for log-probs of tokens."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from megatron.core.transformer.module import Float16Module
from torch import Tensor
from transformers import PretrainedConfig

from tandem_api.spec.hybrid import Optimizer, Recompute
from tandem_trainer import context as context_parallel
from tandem_trainer.bridge import WeightSource, build_bridge, build_stage
from tandem_trainer.device import Device
from tandem_trainer.megatron_fixes import give_state, parts
from tandem_trainer.microbatch import Microbatch, probe
from tandem_trainer.offload import Offload
from tandem_trainer.parallel import Layout, from_last_stage
from tandem_trainer.weights import FullWeights

Loss = Callable[[Microbatch, Tensor], tuple[Tensor, dict[str, Tensor]]]


class Policy:
    """A model spread over ``layout``, with its optimizer.

    Life cycle: built once (weights undefined), then :meth:`load`, then any number of :meth:`run` and :meth:`update`.
    Everything here is collective over the world.
    """

    def __init__(
        self,
        hf_config: PretrainedConfig,
        dtype: torch.dtype,
        layout: Layout,
        device: Device,
        optimizer: Optimizer,
        temperature: float = 1.0,
        recompute: Recompute = Recompute.NONE,
    ) -> None:
        self.hf_config = hf_config
        self.layout = layout
        self.device = device
        self.temperature = temperature
        self._bridge = build_bridge(hf_config, dtype, layout, recompute)
        self._bridge.config.finalize_model_grads_func = _finalize
        self.module = build_stage(self._bridge)
        self.chunks = [_with_ddp(self.module, dtype)]
        self._optimizer = get_megatron_optimizer(
            _optimizer_config(optimizer, dtype), self.chunks, use_gloo_process_groups=False
        )
        give_state(self._optimizer)
        self._offload = Offload(self.chunks, self._optimizer, device) if device.accelerated else None
        self._full_weights: FullWeights | None = None

    @property
    def optimizer(self) -> Any:
        """Megatron's; what is enqueued after this finds its state on the device."""
        if self._offload:
            self._offload.wait_for_state()
        return self._optimizer

    def load(self, source: WeightSource | Path) -> None:
        """Take weights from a Hugging Face directory or any other source of full tensors."""
        self._bridge.source = None if isinstance(source, Path) else source
        with torch.no_grad():
            self._bridge.load_weights([self.module], str(source), memory_efficient=True)
        self.optimizer.reload_model_params()

    def reset_optimizer(self) -> None:
        """Forget all moments and step counts, as a newly made optimizer would (section 2.3.2).

        The state is zeroed in place: Megatron cannot save an optimizer that has none. The float32 master weights stay:
        to read them from bfloat16 weights again would undo every update that is smaller than those can tell.
        """
        for part in parts(self.optimizer):
            for state in part.optimizer.state.values():
                for value in state.values():
                    value.zero_()

    def offload(self, *, weights: bool) -> None:
        """Leave the device: gradients and optimizer state, and the ``weights`` too if asked."""
        if self._offload:
            self._offload.leave(weights=weights)

    def begin_offload(self) -> None:
        """Begin to copy the weights to where :meth:`offload` takes them; until then they may be read."""
        if self._offload:
            self._offload.begin()

    def onload(self, *, training: bool = True) -> None:
        """Come back onto the device: the weights, and what ``training`` needs besides them."""
        if self._offload:
            self._offload.come_back(training=training)

    def parameter_count(self) -> int:
        """Parameters on this rank."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def sequence_multiple(self) -> int:
        """What must divide the padded length of a sequence, since ranks share it."""
        shared = self.layout.tensor if self._bridge.config.sequence_parallel else 1
        return shared * (2 * self.layout.context if self.layout.context > 1 else 1)

    def full_weights(self) -> FullWeights:
        """The weights under Hugging Face names, gathered while iterating."""
        self._full_weights = self._full_weights or FullWeights(self._bridge, self.module)
        return self._full_weights

    def log_probs(self, tokens: Sequence[int]) -> tuple[float, ...]:
        """Log-probs of ``tokens[1:]``, each given those before it, at temperature 1. The same on every rank."""
        found: list[float] = []

        def keep(_: Microbatch, log_probs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            found.extend(log_probs[0].tolist())
            return log_probs.sum(), {}

        self.run(
            [probe(tokens, self.device.torch_device, self.sequence_multiple)], keep, forward_only=True, temperature=1.0
        )
        return tuple(from_last_stage(found)[: len(tokens) - 1])

    def run(
        self, microbatches: Sequence[Microbatch], loss: Loss, *, forward_only: bool, temperature: float | None = None
    ) -> list[dict[str, Tensor]]:
        """Forward (and backward) over this rank's microbatches; every rank must bring the same number.

        ``loss`` gets a microbatch and its log-probs, float32 [b, s], and returns what to differentiate and what to
        report. Gradients add up over microbatches and data parallel ranks, unscaled. The reports come back on the
        last pipeline stage, in order; other stages get none.
        """
        for chunk in self.chunks:
            chunk.train(not forward_only)
            if not forward_only:
                chunk.zero_grad_buffer()
        with torch.set_grad_enabled(not forward_only):
            reports: list[dict[str, Tensor]] = get_forward_backward_func()(
                forward_step_func=partial(self._forward_step, loss, temperature or self.temperature),
                data_iterator=iter(microbatches),
                model=self.chunks,
                num_microbatches=len(microbatches),
                seq_length=1,
                micro_batch_size=1,
                forward_only=forward_only,
            )
        return reports

    def update(self, learning_rate: float) -> float:
        """Take an optimizer step with the gradients of the last :meth:`run`; returns their norm before clipping.

        Raises:
            FloatingPointError: the gradient is not finite, and the weights may not be any more.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        succeeded, norm, _ = self.optimizer.step()
        if not succeeded or not math.isfinite(norm):
            raise FloatingPointError(f"the gradient has the norm {norm}: load a checkpoint, and look at the last batch")
        self.optimizer.zero_grad()
        return float(norm)

    def _forward_step(
        self, loss: Loss, temperature: float, data: Iterator[Microbatch], model: Any
    ) -> tuple[Tensor, Callable[..., Any]]:
        microbatch = next(data)
        inputs, positions = microbatch.inputs, microbatch.positions
        if self.layout.context > 1:
            own = context_parallel.own_columns(inputs.shape[1], inputs.device)
            inputs, positions = inputs[:, own], positions[:, own]
        output = model(
            inputs,
            positions,
            None,
            output_processor=partial(self._log_probs, temperature),
            output_processor_context=microbatch,
        )

        def on_last_stage(log_probs: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            value, report = loss(microbatch, log_probs)
            return value, torch.zeros((), dtype=torch.int), report

        return output, on_last_stage

    def _log_probs(
        self,
        temperature: float,
        *,
        hidden_states: Tensor,
        output_layer: Any,
        output_weight: Tensor | None,
        context: Microbatch,  # Megatron's name for output_processor_context
        **_: Any,
    ) -> Tensor:
        """Log-probs of the targets, float32 [b, s]; zero where the microbatch scores nothing.

        Only scored positions go through the output layer: logits of prompts and padding are never made.
        """
        shape, scored, targets = _own_targets(context)
        if output_layer.sequence_parallel:
            logits, _ = output_layer(hidden_states, weight=output_weight)
            logits = logits.transpose(0, 1).flatten(0, 1)[scored, None]
        else:
            picked = hidden_states.transpose(0, 1).flatten(0, 1)[scored, None]
            logits, _ = output_layer(picked, weight=output_weight)
        logits = self._without_padding(logits)
        if temperature != 1.0:
            logits = logits / temperature
        log_probs = -vocab_parallel_cross_entropy(logits, targets[:, None])
        dense = torch.zeros(shape.numel(), dtype=torch.float32, device=log_probs.device)
        dense = dense.index_put((scored,), log_probs.squeeze(1).float()).view(shape)
        return context_parallel.whole_for_all(dense, 1) if self.layout.context > 1 else dense

    def _without_padding(self, logits: Tensor) -> Tensor:
        """Take the rows that pad the vocabulary out of the softmax."""
        size = logits.shape[-1]
        start = torch.distributed.get_rank(self._bridge.mpu.tp_group) * size
        real = max(0, min(size, self._bridge.vocab_size - start))
        if real == size:
            return logits
        padding = torch.arange(size, device=logits.device) >= real
        return logits.masked_fill(padding, torch.finfo(logits.dtype).min)


def _own_targets(microbatch: Microbatch) -> tuple[torch.Size, Tensor, Tensor]:
    """Of the part of the sequences that this rank holds: its shape [b, s], the flat indices [m] of what is scored in
    it (at least one), and their targets [m].
    """
    targets, scored = microbatch.targets, microbatch.scored
    if context_parallel.size() > 1:
        wanted = torch.zeros(targets.numel(), dtype=torch.bool, device=targets.device)
        wanted[scored] = True
        own = context_parallel.own_columns(targets.shape[1], targets.device)
        scored = wanted.view(targets.shape)[:, own].flatten().nonzero().squeeze(1)
        scored = scored if len(scored) else torch.zeros(1, dtype=torch.int64, device=targets.device)
        targets = targets[:, own]
    return targets.shape, scored, targets.flatten()[scored]


def _with_ddp(module: Any, dtype: torch.dtype) -> Any:
    config = module.config
    return DistributedDataParallel(
        config,
        DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True),
        Float16Module(config, module) if dtype is torch.bfloat16 else module,
    )


def _finalize(model: list[Any], num_tokens: Tensor | None, **kwargs: Any) -> None:
    """Megatron's own, without its division by tokens: losses are weighed before they get here."""
    finalize_model_grads(model, None, **kwargs)


def _optimizer_config(settings: Optimizer, dtype: torch.dtype) -> OptimizerConfig:
    return OptimizerConfig(
        optimizer=settings.kind.value.lower(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.epsilon,
        clip_grad=settings.clip_grad_norm,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=True,
    )
