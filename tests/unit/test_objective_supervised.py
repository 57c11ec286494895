# SPDX-License-Identifier: Apache-2.0
"""The supervised objective of the warm-up."""

import pytest
import torch

from tandem_trainer.objectives import SupervisedObjective, Terms


def test_loss_is_the_mean_cross_entropy_of_all_scored_tokens_of_the_minibatch() -> None:
    objective = SupervisedObjective()
    log_probs = -torch.rand(3, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 0, 0], [0, 1, 1, 0, 0]]).float()
    credit = objective.credit(torch.zeros(3), torch.arange(3), mask.sum(1))
    loss, _ = objective.loss(Terms(log_probs, torch.zeros(3, 5), mask, credit.advantages, credit.weights))
    assert loss.item() == pytest.approx(-log_probs[mask > 0].mean().item())
