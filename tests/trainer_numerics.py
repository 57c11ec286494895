# SPDX-License-Identifier: Apache-2.0
"""Runs the trainer's parts in one process of their own and prints what came out as JSON, for the tests to judge.

    python trainer_numerics.py SCRATCH_DIRECTORY > result.json

The process is its own since the CPU stand-in for CUDA patches torch for all of it; Megatron is imported once for all.
"""

import json
import os
import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from offloading_trainer import held
from safetensors import safe_open
from trainer_world import batch, job_spec
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from tandem_api.errors import UserError
from tandem_api.spec import RLJobSpec
from tandem_api.spec.hybrid import Optimizer, Parallelism, Recompute
from tandem_trainer.device import Device, activate

PROBE = (3, 5, 7, 9, 4, 2, 8, 8, 11, 0, 1, 12)
SIZES: dict[str, Any] = {
    "vocab_size": 17,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-tied": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen2-biases-untied": ("qwen2", {"tie_word_embeddings": False}),
    "llama3-scaled-rope": ("llama", {"tie_word_embeddings": False, "rope_parameters": LLAMA3_ROPE}),
}
EXPERTS = "qwen3-experts"
_MODELS = FAMILIES | {
    EXPERTS: (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True},
    )
}

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
UNSUPPORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "model_type": ("gpt2", {}),
    "rope_parameters": ("qwen3", {"rope_parameters": YARN}),
    "use_sliding_window": ("qwen2", {"use_sliding_window": True}),
    "mlp_bias": ("llama", {"mlp_bias": True}),
}


def main(scratch: Path) -> dict[str, Any]:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    with activate(0) as device:
        from tandem_trainer import parallel

        layout = parallel.join(device, Parallelism(), 1, timedelta(minutes=5))
        checks = Checks(device, layout, scratch)
        return {
            "families": {name: checks.family(name) for name in FAMILIES},
            "microbatches": checks.microbatches(),
            "reset": {dtype: checks.reset(getattr(torch, dtype)) for dtype in ("float32", "bfloat16")},
            "resume": {dtype: checks.resume(getattr(torch, dtype)) for dtype in ("float32", "bfloat16")},
            "offload": checks.offload(),
            "masters": checks.masters(),
            "unsupported": {name: checks.unsupported(*case) for name, case in UNSUPPORTED.items()},
            "layouts": {name: unsupported_layout(device, **{name: 2}) for name in ("tensor", "context", "expert")},
            "temperature": checks.temperature(),
            "reference": checks.reference(),
            "recompute": {family: checks.recompute(family) for family in ("qwen3-tied", EXPERTS)},
        }


class Checks:
    def __init__(self, device: Device, layout: Any, scratch: Path) -> None:
        self._device = device
        self._layout = layout
        self._scratch = scratch
        self._spec = RLJobSpec.model_validate(job_spec())

    def policy(self, config: PretrainedConfig, dtype: torch.dtype = torch.float32, temperature: float = 1.0) -> Any:
        from tandem_trainer.policy import Policy

        optimizer = Optimizer(learning_rate=1e-3)
        return Policy(config, dtype, self._layout, self._device, optimizer, temperature)

    def seeded(self, dtype: torch.dtype = torch.float32, temperature: float = 1.0) -> Any:
        from tandem_trainer.weights import SeededWeights

        config = _config("qwen3-tied")
        policy = self.policy(config, dtype, temperature)
        policy.load(SeededWeights(config, 3))
        return policy

    def batch(self, version: int = 0) -> Any:
        from tandem_trainer.batch import Batch

        body = safetensors.torch.save(batch(seed=5, version=version), {"iteration": "0"})
        return Batch.parse(body, iteration=0)

    def iterate(self, policy: Any, iteration: int, **optimizer: Any) -> dict[str, float]:
        from tandem_trainer.step import IterationSettings, train_iteration

        trainer = self._spec.trainer
        trainer = trainer.model_copy(update={"optimizer": trainer.optimizer.model_copy(update=optimizer)})
        settings = IterationSettings(self._spec.algorithm, trainer, 4, 7)
        result = train_iteration(policy, self.batch(iteration), settings, iteration, iteration)
        measured: dict[str, float] = result.measured
        return measured

    def family(self, name: str) -> dict[str, Any]:
        """From transformers' own weights to Megatron and back."""
        from tandem_trainer.weights import export_hugging_face

        source, target = self._scratch / f"{name}-hf", self._scratch / f"{name}-exported"
        torch.manual_seed(11)
        config = _config(name)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(source)
        policy = self.policy(config)
        policy.load(source)
        export_hugging_face(policy.full_weights(), config, source, target)
        with torch.no_grad():
            scores = model.eval()(torch.tensor([PROBE])).logits[0, :-1].log_softmax(-1)
        expected = scores.gather(1, torch.tensor(PROBE[1:])[:, None]).squeeze(1)
        return {
            "logprobDifference": float((torch.tensor(policy.log_probs(PROBE)) - expected).abs().max()),
            "sameTensors": _tensors(source).keys() == _tensors(target).keys(),
            "changed": [key for key, tensor in _tensors(source).items() if not tensor.equal(_tensors(target)[key])],
            "loads": type(AutoModelForCausalLM.from_pretrained(target)).__name__ == type(model).__name__,
        }

    def microbatches(self) -> list[dict[str, Any]]:
        """Loss and gradient of one minibatch, cut ever finer."""
        from tandem_trainer.minibatch import add_up, share_of
        from tandem_trainer.objectives import MirrorDescentObjective, Terms

        policy, objective, whole = self.seeded(), MirrorDescentObjective(0.1), self.batch()
        cuts = []
        for most_tokens in (100_000, 300, 40, 1):
            pieces = share_of(whole, torch.arange(len(whole)), objective, policy, most_tokens)

            def loss(piece: Any, log_probs: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
                # The engine's log-probs as the reference, so that the pull towards it is not zero.
                terms = Terms(log_probs, piece.engine_log_probs, piece.mask, piece.advantages, piece.weights)
                value, metrics = objective.loss(terms)
                return value, {"loss": value.detach(), **metrics}

            reports = add_up(policy.run(pieces, loss, forward_only=False))
            gradient = torch.cat([buffer.grad_data.flatten() for buffer in policy.chunks[0].buffers]).double()
            cuts.append({"pieces": len(pieces), "loss": reports["loss"], "gradient": gradient})
        first = cuts[0]["gradient"]
        return [
            {
                "pieces": cut["pieces"],
                "loss": cut["loss"],
                "gradientDifference": float((cut["gradient"] - first).norm() / first.norm()),
            }
            for cut in cuts
        ]

    def reset(self, dtype: torch.dtype) -> float:
        """Largest difference of weights between a reset optimizer and one that never was anything else."""
        from tandem_trainer.weights import SeededWeights

        used = self.seeded(dtype)
        self.iterate(used, 0)
        used.load(SeededWeights(used.hf_config, 3))
        used.reset_optimizer()
        fresh = self.seeded(dtype)
        for policy in (used, fresh):
            self.iterate(policy, 1, reset_each_iteration=False)
        return _difference(used.full_weights(), fresh.full_weights())

    def masters(self) -> dict[str, float]:
        """What bfloat16 weights cannot tell of an iteration of small steps, before and after a reset."""
        policy = self.seeded(torch.bfloat16)
        self.iterate(policy, 0, learning_rate=1e-6)
        before = _masters(policy)
        policy.reset_optimizer()
        rounded = torch.cat([master.bfloat16().float() for master in before])
        return {
            "belowPrecision": float((torch.cat(before) - rounded).abs().max()),
            "lostByReset": max(float((a - b).abs().max()) for a, b in zip(before, _masters(policy), strict=True)),
        }

    def unsupported(self, kind: str, options: dict[str, Any]) -> str:
        """What the trainer says of a model that it cannot serve."""
        try:
            self.policy(AutoConfig.for_model(kind, **SIZES | options))
        except UserError as error:
            return str(error)
        return ""

    def resume(self, dtype: torch.dtype) -> dict[str, Any]:
        """Two iterations in one go, and the second one by a new policy from a checkpoint between them."""
        from tandem_trainer.checkpoint import Checkpoints, Counters

        checkpoints = Checkpoints(self._scratch / f"checkpoints-{dtype}")
        through = self.seeded(dtype)
        self.iterate(through, 0)
        path = checkpoints.save(through, Counters(1, 1), keep=1)
        expected = [self.iterate(through, iteration) for iteration in (1, 2)]
        resumed = self.policy(through.hf_config, dtype)
        counters = checkpoints.load(resumed, path)
        again = [self.iterate(resumed, iteration) for iteration in (1, 2)]
        return {
            "counters": [counters.iteration, counters.weight_version],
            "sameMeasured": again == expected,
            "weightDifference": _difference(through.full_weights(), resumed.full_weights()),
        }

    def offload(self) -> dict[str, dict[str, Any]]:
        """Of one that leaves its device before every iteration and one that never does: what they have in common."""
        from tandem_trainer import offload as module
        from tandem_trainer.weights import SeededWeights

        module._PIECE = 10_007  # so that most of the content lies in several of them
        found = {}
        for family, dtype in (("qwen3-tied", torch.float32), ("qwen3-tied", torch.bfloat16), (EXPERTS, torch.bfloat16)):
            config = _config(family)
            stays, leaves = self.policy(config, dtype), self.policy(config, dtype)
            offload = module.Offload(leaves.chunks, leaves.optimizer, self._device)
            away, measured = [], []
            for policy in (stays, leaves):
                policy.load(SeededWeights(config, 3))
            for iteration in range(3):
                offload.leave(weights=False)
                offload.begin()
                probed = leaves.log_probs(PROBE) == stays.log_probs(PROBE)
                with_weights = held(leaves)
                offload.leave(weights=True)
                away.append((with_weights, held(leaves)))
                offload.come_back(training=False)
                probed &= leaves.log_probs(PROBE) == stays.log_probs(PROBE)
                offload.come_back(training=True)
                offload.wait_for_state()
                measured.append(probed and self.iterate(leaves, iteration) == self.iterate(stays, iteration))
            found[f"{family} {dtype}"] = {
                "away": away,
                "of": held(leaves),
                "same": measured,
                "weightDifference": _difference(stays.full_weights(), leaves.full_weights()),
                "mastersDifference": max(
                    float((a - b).abs().max()) for a, b in zip(_masters(stays), _masters(leaves), strict=True)
                ),
            }
        return found

    def temperature(self) -> float:
        """Log-probs at temperature 2 against those of halved logits."""
        config = _config("qwen3-tied")
        directory = self._scratch / "qwen3-tied-hf"
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        policy = self.policy(config, temperature=2.0)
        policy.load(directory)
        found: list[torch.Tensor] = []
        from tandem_trainer.microbatch import probe

        def keep(_: Any, log_probs: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            found.append(log_probs[0].clone())
            return log_probs.sum(), {}

        policy.run([probe(PROBE, self._device.torch_device)], keep, forward_only=True)
        with torch.no_grad():
            scores = (model(torch.tensor([PROBE])).logits[0, :-1] / 2).log_softmax(-1)
        expected = scores.gather(1, torch.tensor(PROBE[1:])[:, None]).squeeze(1)
        return float((found[0] - expected).abs().max())

    def recompute(self, family: str) -> dict[str, dict[str, float]]:
        """Of each way to recompute: how far the gradient is from that without, and the bytes kept for it at most."""
        from tandem_trainer.microbatch import probe
        from tandem_trainer.policy import Policy
        from tandem_trainer.weights import SeededWeights

        config = _config(family)
        piece = probe(PROBE, self._device.torch_device)
        expected: torch.Tensor | None = None
        found = {}
        for kind in Recompute:
            policy = Policy(
                config, torch.float32, self._layout, self._device, Optimizer(), temperature=1.0, recompute=kind
            )
            policy.load(SeededWeights(config, 3))
            kept = Kept()
            with kept.watched():
                policy.run([piece, piece], lambda _, scores: (scores.sum(), {}), forward_only=False)
            buffers = policy.chunks[0].buffers + policy.chunks[0].expert_parallel_buffers
            gradient = torch.cat([buffer.grad_data.flatten() for buffer in buffers])
            expected = gradient if expected is None else expected
            found[kind.value] = {
                "norm": float(gradient.norm()),
                "difference": float((gradient - expected).abs().max()),
                "kept": kept.most,
            }
        return found

    def reference(self) -> dict[str, float]:
        """What the comparison with the engine says when the engine is right, and when it is off by 0.25 nats."""
        tensors = batch(seed=5, version=0)
        exact, off = self._scored(tensors), self._scored(tensors, shift=0.25)
        return {"exactMax": exact["logprobDiffMax"], "offMean": off["logprobDiffMean"]}

    def _scored(self, tensors: dict[str, torch.Tensor], shift: float = 0.0) -> dict[str, float]:
        from tandem_trainer.batch import Batch
        from tandem_trainer.step import IterationSettings, train_iteration

        policy = self.seeded()
        offsets = tensors["offsets"].tolist()
        scored = torch.zeros(len(tensors["tokens"]))
        for start, end in pairwise(offsets):
            scored[start + 1 : end] = torch.tensor(policy.log_probs(tensors["tokens"][start:end].tolist()))
        tensors = tensors | {"engineLogprobs": (scored + shift) * tensors["lossMask"]}
        parsed = Batch.parse(safetensors.torch.save(tensors, {"iteration": "0"}), 0)
        settings = IterationSettings(self._spec.algorithm, self._spec.trainer, 4, 7)
        measured: dict[str, float] = train_iteration(policy, parsed, settings, 0, 0).measured
        return measured


@dataclass(eq=False)
class Saved:
    """A tensor that is there for as long as the backward pass may ask for it."""

    tensor: torch.Tensor


class Kept:
    """Bytes that are kept for the backward pass, and the most that there ever were."""

    def __init__(self) -> None:
        self.most = self._now = 0

    def watched(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self._keep, lambda saved: saved.tensor)

    def _keep(self, tensor: torch.Tensor) -> Saved:
        saved = Saved(tensor)
        self._now += tensor.nbytes
        self.most = max(self.most, self._now)
        weakref.finalize(saved, self._let_go, tensor.nbytes)
        return saved

    def _let_go(self, size: int) -> None:
        self._now -= size


def unsupported_layout(device: Device, **sizes: int) -> str:
    """What the trainer says of a layout that this one rank cannot have."""
    from tandem_trainer import parallel

    try:
        parallel.join(device, Parallelism(**sizes), 1, timedelta(minutes=5))
    except UserError as error:
        return str(error)
    return ""


def _config(family: str) -> PretrainedConfig:
    kind, options = _MODELS[family]
    return AutoConfig.for_model(kind, **SIZES | options)


def _tensors(directory: Path) -> dict[str, torch.Tensor]:
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def _masters(policy: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for group in policy.optimizer.param_groups for parameter in group["params"]]


def _difference(ours: Iterable[tuple[str, torch.Tensor]], theirs: Iterable[tuple[str, torch.Tensor]]) -> float:
    return max(float((a - b).abs().max()) for (_, a), (_, b) in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
