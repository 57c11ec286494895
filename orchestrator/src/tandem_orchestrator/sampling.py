# SPDX-License-Identifier: Apache-2.0
"""Which prompts an iteration is about (paper, section 2.3.4). Pure: the same numbers give the same draw."""

from collections.abc import Collection

import numpy as np

from tandem_api.spec.algorithm import Curriculum, PromptSampling

UNSEEN_SUCCESS = 0.5
"""Success rate that a prompt is taken to have before it was ever tried: as likely right as wrong."""

DISCOUNT = 0.5
"""What earlier tries still count when a prompt is tried again: the policy has changed since."""


def success_rates(tries: np.ndarray, successes: np.ndarray) -> np.ndarray:
    """Tracked success rate s of each prompt, float64 [n]; :data:`UNSEEN_SUCCESS` where ``tries`` is 0."""
    rates = np.full(len(tries), UNSEEN_SUCCESS)
    np.divide(successes, tries, out=rates, where=tries > 0)
    return rates


def discounted(tries: float, successes: float, new_tries: int, new_successes: int) -> tuple[float, float]:
    """(tries, successes) of a prompt after ``new_tries`` more."""
    return tries * DISCOUNT + new_tries, successes * DISCOUNT + new_successes


def open_prompts(
    curriculum: Curriculum | None, difficulties: np.ndarray, rates: np.ndarray, iteration: int, least: int
) -> np.ndarray:
    """Indices of the prompts that the curriculum has opened by ``iteration`` (from 0), the easiest first.

    Ease is the difficulty label where every prompt has one (no NaN in ``difficulties``), the tracked success rate
    otherwise; ties keep the order of the prompt set. The open share grows linearly from ``initialFraction`` to all.
    At least ``least`` prompts are open.
    """
    if curriculum is None:
        return np.arange(len(rates))
    hardness = 1.0 - rates if np.isnan(difficulties).any() else difficulties
    passed = min(1.0, iteration / curriculum.iterations)
    share = curriculum.initial_fraction + (1.0 - curriculum.initial_fraction) * passed
    count = max(least, int(np.ceil(share * len(rates) - 1e-9)))
    easiest: np.ndarray = np.argsort(hardness, kind="stable")[:count]
    return easiest


def draw(weights: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Indices of ``count`` different items, each next one drawn with probability proportional to its weight.

    Items of weight 0 are drawn, uniformly, only when no others are left. Each item races with an exponential clock of
    its weight and the first ``count`` to ring are taken, which is the same distribution as drawing one by one.
    """
    clocks = generator.standard_exponential(len(weights))
    with np.errstate(divide="ignore"):
        arrival = clocks / weights
    order: np.ndarray = np.lexsort((clocks, arrival))
    return order[:count]


def draw_prompts(
    sampling: PromptSampling,
    *,
    tries: np.ndarray,
    successes: np.ndarray,
    difficulties: np.ndarray,
    excluded: Collection[int],
    count: int,
    least_open: int,
    seed: tuple[int, ...],
    iteration: int,
) -> np.ndarray:
    """Indices of up to ``count`` prompts for ``iteration``, none twice and none of ``excluded``.

    With ``prioritized``, p is proportional to 1 - s. ``seed`` names the draw: the job's seed, the iteration, and how
    many prompts of it were drawn before.
    """
    rates = success_rates(tries, successes)
    opened = open_prompts(sampling.curriculum, difficulties, rates, iteration, least_open)
    opened = np.sort(opened[~np.isin(opened, list(excluded))])
    weights = 1.0 - rates[opened] if sampling.prioritized else np.ones(len(opened))
    drawn: np.ndarray = opened[draw(weights, count, np.random.default_rng(seed))]
    return drawn
