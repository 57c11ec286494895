# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning: the long-CoT warm-up before reinforcement learning (Kimi k1.5, section 2.2)."""

import torch
from torch import Tensor

from tandem_trainer.objectives.contract import Credit, Terms


class SupervisedObjective:
    """Cross entropy of the responses' tokens, each token of a minibatch counting the same."""

    @property
    def needs_reference(self) -> bool:
        return False

    def credit(self, rewards: Tensor, groups: Tensor, tokens: Tensor) -> Credit:
        total = tokens.sum().clamp(min=1)
        return Credit(torch.ones_like(rewards), torch.ones_like(rewards) / total)

    def loss(self, terms: Terms) -> tuple[Tensor, dict[str, Tensor]]:
        return -(terms.weights * (terms.log_probs * terms.mask).sum(1)).sum(), {}
