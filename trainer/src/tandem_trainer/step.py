# SPDX-License-Identifier: Apache-2.0
"""One iteration of training: the reference's log-probs, then minibatches against them (section 2.3.2)."""

import math
from dataclasses import dataclass
from itertools import chain
from time import perf_counter

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from tandem_api.spec.algorithm import AlgorithmSpec
from tandem_api.spec.hybrid import DecayKind, Optimizer, TrainerSpec
from tandem_trainer.batch import Batch
from tandem_trainer.microbatch import Microbatch
from tandem_trainer.minibatch import descend, share_of
from tandem_trainer.objectives import objective_of
from tandem_trainer.parallel import from_last_stage
from tandem_trainer.policy import Policy


@dataclass(frozen=True, slots=True)
class IterationResult:
    """``measured``: loss, gradNorm, tauPenalty, tokens and so on by name; ``seconds``: reference, update."""

    measured: dict[str, float]
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class IterationSettings:
    """What of a job's spec decides how an iteration is trained."""

    algorithm: AlgorithmSpec
    trainer: TrainerSpec
    iterations: int
    seed: int


def train_iteration(
    policy: Policy, batch: Batch, settings: IterationSettings, iteration: int, version: int
) -> IterationResult:
    """Update the policy, whose weights are ``version``, on the batch of ``iteration`` (from 0). Collective."""
    started = perf_counter()
    objective = objective_of(settings.algorithm)
    descent = settings.algorithm.mirror_descent
    assert descent is not None
    if descent.exclude_stale_segments:
        batch = batch.without_stale_tokens(version)
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + iteration)
    minibatches = [
        share_of(batch, chosen, objective, policy, settings.trainer.micro_batch_tokens)
        for chosen in batch.minibatches(descent.batch_prompts, generator)
    ]
    prepared = perf_counter()
    measured = _compute_reference(policy, list(chain(*minibatches)), version)
    referenced = perf_counter()

    if settings.trainer.optimizer.reset_each_iteration:
        policy.reset_optimizer()
    rate = learning_rate(settings.trainer.optimizer, iteration, settings.iterations)
    reports: list[dict[str, float]] = []
    for _ in range(descent.epochs):
        order = torch.randperm(len(minibatches), generator=generator).tolist()
        reports += [descend(policy, objective, minibatches[index], rate) for index in order]
    measured |= {name: sum(report[name] for report in reports) / len(reports) for name in reports[0]}
    measured |= {"tokens": float(batch.tokens_in_loss().sum()), "learningRate": rate, "updates": float(len(reports))}
    seconds = {
        "batch": prepared - started,
        "reference": referenced - prepared,
        "update": perf_counter() - referenced,
    }
    return IterationResult(measured, seconds)


def learning_rate(settings: Optimizer, iteration: int, iterations: int) -> float:
    """Learning rate of ``iteration`` (from 0) of ``iterations``; a decay starts at ``learningRate``."""
    done = min(1.0, iteration / iterations)
    left = {
        DecayKind.CONSTANT: 1.0,
        DecayKind.LINEAR: 1.0 - done,
        DecayKind.COSINE: (1.0 + math.cos(math.pi * done)) / 2,
    }[settings.decay]
    return settings.final_learning_rate + (settings.learning_rate - settings.final_learning_rate) * left


def _compute_reference(policy: Policy, microbatches: list[Microbatch], version: int) -> dict[str, float]:
    """Fill in the reference of all microbatches, and compare it with what the engine said of its own tokens.

    A growing difference means that engine and trainer do not have the same weights, or not the same model.
    """
    largest = torch.zeros((), dtype=torch.float64)
    total, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)

    def keep(piece: Microbatch, log_probs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        piece.reference = log_probs.detach()
        current = (piece.versions == version) & (piece.mask > 0)
        difference = (piece.reference - piece.engine_log_probs).abs()[current].double().cpu()
        total.add_(difference.sum())
        count.add_(len(difference))
        if len(difference):
            largest.copy_(torch.maximum(largest, difference.max()))
        return log_probs.sum(), {}

    policy.run(microbatches, keep, forward_only=True)
    device = policy.device.torch_device
    sums, peak = torch.stack([total, count]).to(device), largest.to(device)
    group = parallel_state.get_data_parallel_group()
    dist.all_reduce(sums, group=group)
    dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
    mean = float(sums[0] / sums[1].clamp(min=1))
    measured: dict[str, float] = from_last_stage({"logprobDiffMean": mean, "logprobDiffMax": float(peak)})
    return measured
