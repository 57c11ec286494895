# SPDX-License-Identifier: Apache-2.0
"""Prompts are drawn by curriculum and success rate (section 2.3.4)."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from tandem_api.spec.algorithm import Curriculum, PromptSampling
from tandem_orchestrator.sampling import (
    UNSEEN_SUCCESS,
    discounted,
    draw,
    draw_prompts,
    open_prompts,
    success_rates,
)

SIGNIFICANCE = 1e-3


def prompts_drawn(tries: Any, successes: Any, **changes: Any) -> np.ndarray:
    options: dict[str, Any] = {
        "tries": np.asarray(tries, float),
        "successes": np.asarray(successes, float),
        "difficulties": np.full(len(tries), np.nan),
        "excluded": (),
        "count": 1,
        "least_open": 1,
        "seed": (1, 0, 0),
        "iteration": 0,
    }
    return draw_prompts(PromptSampling(**changes.pop("sampling", {})), **(options | changes))


def test_prioritised_frequencies_are_proportional_to_one_minus_the_success_rate():
    tries = np.array([8.0, 8, 8, 8, 8, 0])
    successes = np.array([0.0, 2, 4, 6, 7, 0])
    draws = [prompts_drawn(tries, successes, seed=(1, n, 0))[0] for n in range(20_000)]
    expected = 1.0 - np.array([0.0, 0.25, 0.5, 0.75, 0.875, UNSEEN_SUCCESS])
    counts = np.bincount(draws, minlength=len(tries))
    assert chisquare(counts, expected / expected.sum() * len(draws)).pvalue > SIGNIFICANCE


def test_drawing_several_at_once_is_drawing_one_after_the_other():
    weights = np.array([0.7, 0.2, 0.1])
    seconds = [draw(weights, 2, np.random.default_rng(n))[1] for n in range(20_000)]
    # The second is j after i with probability w_i * w_j / (1 - w_i).
    expected = [sum(weights[i] * weights[j] / (1 - weights[i]) for i in range(3) if i != j) for j in range(3)]
    assert chisquare(np.bincount(seconds, minlength=3), np.array(expected) * 20_000).pvalue > SIGNIFICANCE


def test_without_priorities_every_prompt_is_as_likely():
    draws = [prompts_drawn([8] * 5, [0, 2, 4, 6, 8], sampling={"prioritized": False}, seed=(n,)) for n in range(10_000)]
    assert chisquare(np.bincount(np.concatenate(draws), minlength=5)).pvalue > SIGNIFICANCE


def test_prompts_that_always_succeed_are_drawn_only_when_no_others_are_left():
    for n in range(200):
        found = prompts_drawn([4] * 6, [4, 4, 4, 4, 0, 2], count=4, seed=(n,))
        assert set(found[:2]) == {4, 5}


@given(st.integers(1, 40), st.integers(0, 50), st.integers(0, 2**31))
def test_no_prompt_is_drawn_twice_and_none_that_is_excluded(total: int, count: int, seed: int):
    excluded = set(range(0, total, 3))
    found = prompts_drawn([0] * total, [0] * total, count=count, seed=(seed,), excluded=excluded)
    assert len(set(found)) == len(found) == min(count, total - len(excluded))
    assert not excluded & set(found.tolist())


def test_the_same_seed_gives_the_same_draw_and_another_another():
    first, again, other = (
        prompts_drawn([0] * 100, [0] * 100, count=20, seed=seed) for seed in ((1, 2), (1, 2), (1, 3))
    )
    assert first.tolist() == again.tolist() != other.tolist()


def test_a_curriculum_starts_with_the_easiest_by_label_and_ends_with_all():
    difficulties = np.array([3.0, 1.0, 2.0, 5.0, 4.0])
    plan = Curriculum(iterations=10, initial_fraction=0.4)
    opened = [open_prompts(plan, difficulties, np.full(5, 0.5), iteration, 1).tolist() for iteration in (0, 5, 10, 99)]
    assert opened == [[1, 2], [1, 2, 0, 4], [1, 2, 0, 4, 3], [1, 2, 0, 4, 3]]


def test_a_curriculum_without_labels_goes_by_the_success_rate():
    rates = np.array([0.1, 0.9, 0.5])
    plan = Curriculum(iterations=10, initial_fraction=0.3)
    assert open_prompts(plan, np.array([1.0, np.nan, 2.0]), rates, 0, 1).tolist() == [1]


def test_a_curriculum_always_opens_enough_for_an_iteration():
    plan = Curriculum(iterations=10, initial_fraction=0.01)
    assert len(open_prompts(plan, np.arange(50.0), np.full(50, 0.5), 0, 8)) == 8


def test_success_rates_follow_recent_tries():
    tries, successes = discounted(0.0, 0.0, 8, 0)
    for _ in range(6):
        tries, successes = discounted(tries, successes, 8, 8)
    assert success_rates(np.array([tries]), np.array([successes]))[0] > 0.98
