# SPDX-License-Identifier: Apache-2.0
"""Models cut over four ranks in every way: what the trainer computes with them, what it hands over, and how it resumes.

`run` starts the ranks once, under torchrun; they go through all cases. The ranks run this file.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

RANKS = 4
PROBE = (3, 5, 7, 9, 4, 2, 8, 8, 11, 1, 6, 13, 0, 10, 12, 15, 5)
SEED = 11
SECONDS = 840.0
CHARACTERS = "0123456789+-= \n"
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
MODELS: dict[str, dict[str, Any]] = {
    "tied": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"} | _SIZES | {"tie_word_embeddings": True},
    "untied": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"} | _SIZES,
    "biases": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"} | _SIZES | {"head_dim": 16},
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | _SIZES,
    "experts": {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "norm_topk_prob": True}
    | _SIZES
    | _EXPERTS,
    "shared experts": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "norm_topk_prob": False,
        "shared_expert_intermediate_size": 64,
    }
    | _SIZES
    | _EXPERTS
    | {"head_dim": 16},
}


@dataclass(frozen=True)
class Case:
    """A model and its layout; the ranks that are left over are data parallel."""

    model: str
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1

    def __str__(self) -> str:
        sizes = {"tp": self.tensor, "pp": self.pipeline, "cp": self.context, "ep": self.expert}
        sizes["dp"] = RANKS // (self.tensor * self.pipeline * self.context)
        return " ".join([self.model, *(f"{name}{size}" for name, size in sizes.items() if size > 1)])


CASES = [
    *(Case("tied", *sizes) for sizes in [(1,), (2,), (4,), (1, 4), (2, 2), (2, 1, 2), (1, 1, 4)]),
    *(Case("untied", *sizes) for sizes in [(2,), (1, 2), (2, 2)]),
    *(Case(model, *sizes) for model in ("biases", "llama") for sizes in [(2, 2), (2, 1, 2)]),
    *(
        Case("experts", *sizes)
        for sizes in [(1,), (1, 2), (1, 1, 1, 4), (2, 1, 1, 4), (1, 2, 1, 2), (2, 2, 1, 2), (2, 1, 2, 4)]
    ),
    *(Case("shared experts", *sizes) for sizes in [(1,), (1, 1, 1, 4), (2, 1, 1, 2), (1, 2, 1, 2)]),
]
RESUMED = [
    Case("tied", tensor=2, context=2),
    Case("experts", pipeline=2, expert=2),
    Case("experts", tensor=2, context=2, expert=4),
]
"""Of these a checkpoint is saved and loaded too."""


@dataclass(frozen=True)
class Outcome:
    """Of one case: log-probs of the probe, the gradient's norm of their sum, the digest on each rank, what became of
    the weights in an update after a checkpoint (digest and norm, first without a stop, then resumed; empty if that was
    not asked), and where the weights lie that came out of the handoff of the last rank.
    """

    log_probs: list[float]
    gradient_norm: float
    digests: list[str]
    updates: list[tuple[list[str], float]]
    weights: Path


def run(directory: Path, cases: list[Case]) -> dict[str, Outcome]:
    """All outcomes by the case's name."""
    (directory / "cases.json").write_text(json.dumps([case.__dict__ for case in cases]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    log = directory / "ranks.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [*command, __file__, str(directory)], env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=output
        ) as ranks,
    ):
        try:
            status = ranks.wait(SECONDS)
        finally:
            ranks.terminate()  # and it ends its ranks, which a kill would leave behind
    errors = log.read_text()
    assert status == 0, errors[: errors.find("ChildFailedError")][-9000:]
    outcomes = json.loads((directory / "outcomes.json").read_text())
    return {name: Outcome(*found, directory / f"{name}.safetensors") for name, found in outcomes.items()}


def write_model(directory: Path, model: str) -> Path:
    """Writes config and tokenizer of a model."""
    from tandem_api.model_source import materialise
    from tandem_api.spec.model import CharacterTokenizer, DType, RandomSource

    source = RandomSource(config=MODELS[model], tokenizer=CharacterTokenizer(characters=CHARACTERS))
    return materialise(source, directory, DType.FLOAT32)


def _rank(directory: Path) -> None:
    """What each rank does."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from tandem_trainer import parallel
    from tandem_trainer.device import activate

    outcomes: dict[str, tuple[Any, ...]] = {}
    cases = [Case(**case) for case in json.loads((directory / "cases.json").read_text())]
    with activate(0) as device:
        timeout = timedelta(minutes=5)
        store, rank, _ = next(dist.rendezvous("env://"))
        for case in cases:
            # Destroyed again with each case: the threads of a group stay until then, and a layout has forty groups.
            prefixed = dist.PrefixStore(str(case), store)
            dist.init_process_group("gloo", store=prefixed, rank=rank, world_size=RANKS, timeout=timeout)
            layout = parallel.Layout(
                case.tensor,
                case.pipeline,
                RANKS // (case.tensor * case.pipeline * case.context),
                case.context,
                case.expert,
            )
            parallel.divide(layout, timeout)
            outcomes[str(case)] = _outcome(directory, case, layout, device)
            parallel_state.destroy_model_parallel()
            dist.destroy_process_group()
        if rank == 0:
            (directory / "outcomes.json").write_text(json.dumps(outcomes))


def _outcome(directory: Path, case: Case, layout: Any, device: Any) -> tuple[Any, ...]:
    import torch
    import torch.distributed as dist
    from safetensors.torch import save_file
    from transformers import AutoConfig

    from tandem_api.spec.hybrid import Optimizer
    from tandem_trainer.policy import Policy
    from tandem_trainer.weights import SeededWeights

    model = directory / case.model
    if dist.get_rank() == 0 and not model.exists():
        write_model(model, case.model)
    dist.barrier()
    config = AutoConfig.from_pretrained(model)

    def build() -> Policy:
        return Policy(config, torch.float32, layout, device, Optimizer(clip_grad_norm=1e9))

    policy = build()
    policy.load(SeededWeights(config, SEED))
    log_probs = policy.log_probs(PROBE)
    received, digests = _hand_over(directory, policy)
    if dist.get_rank() == RANKS - 1:
        save_file(received, directory / f"{case}.safetensors", metadata={"format": "pt"})
    norm = _gradient_norm(policy)
    updates = _resume(directory, policy, build()) if case in RESUMED else []
    return list(log_probs), norm, digests, updates


def _resume(directory: Path, policy: Any, other: Any) -> list[tuple[list[str], float]]:
    """An update after a checkpoint, and the same by another policy that was given the checkpoint."""
    from tandem_trainer.checkpoint import Checkpoints, Counters

    checkpoints = Checkpoints(directory / "checkpoints")
    _gradient_norm(policy, learning_rate=1e-3)
    checkpoints.load(other, checkpoints.save(policy, Counters(1, 1), keep=1))
    norms = [_gradient_norm(one, learning_rate=1e-3) for one in (policy, other)]
    return [(_hand_over(directory, one)[1], norm) for one, norm in zip((policy, other), norms, strict=True)]


def _hand_over(directory: Path, policy: Any) -> tuple[dict[str, Any], list[str]]:
    """From this rank to an importer of its own: what arrives, and the digests of all ranks."""
    import torch.distributed as dist

    from tandem_handoff import Exporter, Importer, Verify

    path = directory / f"handoff-{dist.get_rank()}.sock"
    received: dict[str, Any] = {}

    def take() -> None:
        importer = Importer(path)
        for tensors in importer.receive(1, 60.0):
            received.update((name, tensor.clone()) for name, tensor in tensors)
        importer.close()

    with Exporter(path, 2**15, verify=Verify.CHECKSUMS) as exporter, ThreadPoolExecutor(1) as thread:
        taking = thread.submit(take)
        manifest = exporter.export(1, policy.full_weights(), 60.0)
        taking.result()
    digests = [""] * RANKS
    dist.all_gather_object(digests, manifest.digest)
    return received, digests


def _gradient_norm(policy: Any, learning_rate: float = 0.0) -> float:
    """Of the sum of the probe's log-probs; every data parallel rank brings its share of the same probe. The optimizer
    takes a step with it.
    """
    from torch import Tensor

    from tandem_trainer.microbatch import Microbatch, probe

    def loss(_: Microbatch, log_probs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return log_probs.sum() / policy.layout.data, {}

    piece = probe(PROBE, policy.device.torch_device, policy.sequence_multiple)
    policy.run([piece, piece], lambda *given: loss(*given), forward_only=False, temperature=1.0)
    norm: float = policy.update(learning_rate)
    return norm / 2


if __name__ == "__main__":
    _rank(Path(sys.argv[1]))
