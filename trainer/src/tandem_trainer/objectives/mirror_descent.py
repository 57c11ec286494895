# SPDX-License-Identifier: Apache-2.0
"""Online policy mirror descent (Kimi k1.5, section 2.3.2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tandem_trainer.objectives.contract import Credit, Terms


@dataclass(frozen=True, slots=True)
class MirrorDescentObjective:
    """For each prompt x with responses y_1 … y_k, rewards r_j and their mean r, and the reference pi_i:

    (1/k) sum_j [ -(r_j - r) log pi(y_j|x) + tau/2 (log pi(y_j|x) - log pi_i(y_j|x))^2 ], averaged over prompts.

    Its gradient is the paper's. log pi is summed over the response's tokens that the mask leaves in.
    """

    tau: float

    @property
    def needs_reference(self) -> bool:
        return True

    def credit(self, rewards: Tensor, groups: Tensor, tokens: Tensor) -> Credit:
        prompts, member, size = torch.unique(groups, return_inverse=True, return_counts=True)
        mean = torch.zeros(len(prompts), dtype=rewards.dtype).index_add(0, member, rewards) / size
        return Credit(rewards - mean[member], 1 / (len(prompts) * size[member].to(rewards.dtype)))

    def loss(self, terms: Terms) -> tuple[Tensor, dict[str, Tensor]]:
        log_pi = (terms.log_probs * terms.mask).sum(1)
        log_ratio = ((terms.log_probs - terms.reference) * terms.mask).sum(1)
        penalty = self.tau / 2 * log_ratio.square()
        gain = terms.advantages * log_pi
        return (terms.weights * (penalty - gain)).sum(), {
            "tauPenalty": (terms.weights * penalty).sum().detach(),
            "logRatio": (terms.weights * log_ratio).sum().detach(),
        }
