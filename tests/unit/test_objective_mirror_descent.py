# SPDX-License-Identifier: Apache-2.0
"""The mirror-descent loss against an independent float64 evaluation of the paper's formula (section 2.3.2)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tandem_trainer.objectives import MirrorDescentObjective, Terms


class Case:
    """Random prompts with responses of several lengths, some tokens left out of the loss."""

    def __init__(self, seed: int, prompts: int, tau: float) -> None:
        random = np.random.default_rng(seed)
        sizes = random.integers(2, 6, prompts)
        self.tau = tau
        self.groups = np.repeat(random.permutation(prompts), sizes)
        self.rewards = random.normal(size=len(self.groups))
        shape = (len(self.groups), int(random.integers(1, 12)))
        self.log_probs = -random.exponential(2.0, shape)
        self.reference = -random.exponential(2.0, shape)
        self.mask = (random.random(shape) < 0.7).astype(np.float64)

    def by_the_paper(self) -> tuple[float, np.ndarray]:
        """Loss, and its gradient by each token's log-prob, written down prompt by prompt and response by response."""
        loss, gradient = 0.0, np.zeros_like(self.log_probs)
        prompts = sorted(set(self.groups))
        for prompt in prompts:
            responses = [j for j, group in enumerate(self.groups) if group == prompt]
            k = len(responses)
            mean = sum(self.rewards[j] for j in responses) / k
            for j in responses:
                scored = [t for t in range(self.mask.shape[1]) if self.mask[j, t]]
                log_pi = math.fsum(self.log_probs[j, t] for t in scored)
                log_ratio = log_pi - math.fsum(self.reference[j, t] for t in scored)
                loss += (-(self.rewards[j] - mean) * log_pi + self.tau / 2 * log_ratio**2) / k / len(prompts)
                for t in scored:
                    gradient[j, t] = (-(self.rewards[j] - mean) + self.tau * log_ratio) / k / len(prompts)
        return loss, gradient

    def by_the_objective(self, dtype: torch.dtype, pieces: list[slice]) -> tuple[float, np.ndarray]:
        """The same by the code under test, a piece of the minibatch at a time."""
        objective = MirrorDescentObjective(self.tau)
        mask = torch.tensor(self.mask, dtype=dtype)
        credit = objective.credit(torch.tensor(self.rewards, dtype=dtype), torch.tensor(self.groups), mask.sum(1))
        log_probs = torch.tensor(self.log_probs, dtype=dtype, requires_grad=True)
        reference = torch.tensor(self.reference, dtype=dtype)
        total = 0.0
        for piece in pieces:
            terms = Terms(
                log_probs[piece], reference[piece], mask[piece], credit.advantages[piece], credit.weights[piece]
            )
            loss, _ = objective.loss(terms)
            loss.backward()
            total += loss.item()
        assert log_probs.grad is not None
        return total, log_probs.grad.numpy()


cases = st.builds(Case, st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(0.001, 2.0))


@given(cases)
def test_loss_and_gradient_equal_the_papers_formula(case: Case) -> None:
    loss, gradient = case.by_the_objective(torch.float64, [slice(None)])
    expected_loss, expected_gradient = case.by_the_paper()
    assert loss == pytest.approx(expected_loss, rel=1e-10, abs=1e-10)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


@given(cases)
def test_float32_is_as_close_as_its_precision(case: Case) -> None:
    loss, gradient = case.by_the_objective(torch.float32, [slice(None)])
    expected_loss, expected_gradient = case.by_the_paper()
    assert loss == pytest.approx(expected_loss, rel=1e-4, abs=1e-3)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


@given(cases, st.integers(1, 5))
def test_loss_does_not_depend_on_how_the_minibatch_is_cut(case: Case, size: int) -> None:
    starts = range(0, len(case.groups), size)
    loss, gradient = case.by_the_objective(torch.float64, [slice(start, start + size) for start in starts])
    whole_loss, whole_gradient = case.by_the_objective(torch.float64, [slice(None)])
    assert loss == pytest.approx(whole_loss, rel=1e-10, abs=1e-10)
    np.testing.assert_allclose(gradient, whole_gradient, rtol=1e-10, atol=1e-12)


def test_equal_rewards_leave_only_the_pull_to_the_reference() -> None:
    objective = MirrorDescentObjective(tau=0.5)
    credit = objective.credit(torch.ones(4), torch.tensor([0, 0, 1, 1]), torch.ones(4))
    reference = torch.randn(4, 3)
    log_probs = reference.clone().requires_grad_()
    loss, _ = objective.loss(Terms(log_probs, reference, torch.ones(4, 3), credit.advantages, credit.weights))
    loss.backward()
    assert log_probs.grad is not None
    assert loss.item() == 0.0
    assert log_probs.grad.abs().max() == 0.0
