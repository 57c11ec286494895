# SPDX-License-Identifier: Apache-2.0
"""The long-CoT warm-up: a light supervised fine-tuning before reinforcement learning (section 2.2)."""

from time import perf_counter

import structlog
import torch

from tandem_api.spec.data import Warmup
from tandem_trainer.batch import Batch
from tandem_trainer.minibatch import descend, share_of
from tandem_trainer.objectives import SupervisedObjective
from tandem_trainer.policy import Policy
from tandem_trainer.step import IterationResult

log = structlog.get_logger()

REPORTED_STEPS = 50


def warm_up(policy: Policy, rows: Batch, settings: Warmup, most_tokens: int, seed: int) -> IterationResult:
    """Train ``settings.epochs`` passes over ``rows``. Collective.

    The learning rate rises over the first fiftieth of the steps and then falls linearly to zero.
    ``measured`` holds the loss (nats a token) of the first and of the last steps.
    """
    started = perf_counter()
    objective = SupervisedObjective()
    generator = torch.Generator().manual_seed(seed)
    steps = settings.epochs * -(-len(rows) // settings.batch_size)
    policy.reset_optimizer()
    losses: list[float] = []
    for _ in range(settings.epochs):
        for chosen in torch.randperm(len(rows), generator=generator).split(settings.batch_size):
            rate = settings.learning_rate * _course(len(losses), steps)
            microbatches = share_of(rows, chosen, objective, policy, most_tokens)
            losses.append(descend(policy, objective, microbatches, rate)["loss"])
            if len(losses) % REPORTED_STEPS == 0:
                recent = sum(losses[-REPORTED_STEPS:]) / REPORTED_STEPS
                log.info("warm-up goes on", step=len(losses), steps=steps, loss=round(recent, 4))
    policy.reset_optimizer()
    last = losses[-REPORTED_STEPS:]
    measured = {"firstLoss": losses[0], "loss": sum(last) / len(last), "updates": float(steps)}
    return IterationResult(measured, {"update": perf_counter() - started})


def _course(step: int, steps: int) -> float:
    """The share of the learning rate at ``step`` (from 0) of ``steps``."""
    rise = max(1, steps // 50)
    return min(1.0, (step + 1) / rise) * (1 - step / steps)
