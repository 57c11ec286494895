# SPDX-License-Identifier: Apache-2.0
"""One optimizer step's worth of samples: this rank's share of it, and the loss over it."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from tandem_trainer import microbatch
from tandem_trainer.batch import Batch
from tandem_trainer.microbatch import Microbatch
from tandem_trainer.objectives import Credit, Objective, Terms
from tandem_trainer.parallel import from_last_stage
from tandem_trainer.policy import Policy


def share_of(batch: Batch, chosen: Tensor, objective: Objective, policy: Policy, most_tokens: int) -> list[Microbatch]:
    """This data parallel rank's microbatches of the minibatch of the ``chosen`` samples [m]."""
    credit = objective.credit(batch.rewards[chosen], batch.groups[chosen], batch.tokens_in_loss()[chosen])
    shares = microbatch.plan(batch.lengths[chosen].tolist(), policy.layout.data, most_tokens)
    built = []
    for indices in shares[parallel_state.get_data_parallel_rank()]:
        own = torch.tensor(indices, dtype=torch.int64)
        own_credit = Credit(credit.advantages[own], credit.weights[own])
        built.append(
            microbatch.build(batch, chosen[own], own_credit, policy.device.torch_device, policy.sequence_multiple)
        )
    return built


def descend(
    policy: Policy, objective: Objective, microbatches: Sequence[Microbatch], learning_rate: float
) -> dict[str, float]:
    """Take one optimizer step; returns ``loss``, ``gradNorm`` and the objective's own metrics."""

    def loss(piece: Microbatch, log_probs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        terms = Terms(log_probs, piece.reference, piece.mask, piece.advantages, piece.weights)
        value, metrics = objective.loss(terms)
        return value, {"loss": value.detach(), **metrics}

    totals = add_up(policy.run(microbatches, loss, forward_only=False))
    totals["gradNorm"] = policy.update(learning_rate)
    return totals


def add_up(reports: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Sum reports over microbatches and data parallel ranks. Collective; the same on every rank."""
    totals: dict[str, float] | None = None
    if parallel_state.is_pipeline_last_stage():
        rows = list(reports)
        names = list(rows[0])
        table = torch.stack([torch.stack([row[name].double() for name in names]) for row in rows]).sum(0)
        dist.all_reduce(table, group=parallel_state.get_data_parallel_group())
        totals = dict(zip(names, table.tolist(), strict=True))
    result: dict[str, float] = from_last_stage(totals)
    return result
