# SPDX-License-Identifier: Apache-2.0
"""Answers are taken out of responses and compared as text; rewards are chosen by domain."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tandem_api.errors import UserError
from tandem_api.records import Record
from tandem_api.spec.rewards import ExactReward, ReasoningGymReward, Reward
from tandem_orchestrator.rewards import exact as exact_reward
from tandem_orchestrator.rewards.exact import ExactScorer
from tandem_orchestrator.rewards.score import Score, Unscored
from tandem_orchestrator.rewards.scoring import Scoring
from tandem_orchestrator.rewards.worker import final_answer


def record(**fields: Any) -> Record:
    return Record(**({"id": "r", "domain": "sum", "prompt": "1 + 1 =", "answer": "2"} | fields))


@asynccontextmanager
async def closing[T: Scoring | ExactScorer](scoring: T) -> AsyncIterator[T]:
    try:
        yield scoring
    finally:
        await scoring.close()


@pytest.mark.parametrize(
    ("response", "pattern", "answer"),
    [
        (" 2\n", None, "2"),
        ("first 1, then 2", r"(\d+)", "2"),
        ("1=1\n1 + 1 =2", r"=\s*(-?\d+)$", "2"),
        ("no number", r"(\d+)", None),
        ("", None, ""),
        ("a-b", r"\w", "b"),
        ("x", r"(y)?x", None),
    ],
)
def test_the_answer_is_the_last_match(response: str, pattern: str | None, answer: str | None):
    assert final_answer(response, re.compile(pattern) if pattern else None) == answer


@pytest.mark.parametrize(("pattern", "said"), [(r"(\d+)$", "so it is "), (None, " ")])
async def test_equal_text_scores_one(pattern: str | None, said: str):
    async with closing(ExactScorer(ExactReward(pattern=pattern), processes=1)) as scorer:
        assert await scorer.score(record(), f"{said}2") == Score(1.0, True)
        assert await scorer.score(record(), f"{said}3") == Score(0.0, False)


async def test_a_pattern_that_backtracks_for_ever_costs_one_verdict_and_stops_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exact_reward, "SECONDS", 4.0)
    async with closing(ExactScorer(ExactReward(pattern=r"((?:a|a)+)2$"), processes=1)) as scorer:
        assert (await scorer.score(record(answer="a"), "a2")).correct
        hopeless = asyncio.create_task(scorer.score(record(), "a" * 64 + "b"))
        turns = 0
        while not hopeless.done():
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(Unscored, match="too long"):
            await hopeless
        assert turns > 10
        assert (await scorer.score(record(answer="a"), "a2")).correct


def test_a_pattern_that_is_no_regular_expression_is_refused_before_the_start():
    with pytest.raises(UserError, match=r"spec\.rewards\[0\]\.exact\.pattern: is no regular expression"):
        Scoring((exact("broken", None, "(a"),))


async def test_a_record_without_an_answer_cannot_be_scored():
    with pytest.raises(Unscored, match="no answer"):
        await ExactScorer(ExactReward(), processes=1).score(record(answer=None), "2")


async def test_the_first_reward_whose_domains_match_is_used():
    digits = Reward(name="digits", domains=("sum",), exact=ExactReward(pattern=r"(\d+)"))
    async with closing(Scoring((digits, Reward(name="rest", exact=ExactReward())))) as scoring:
        assert (await scoring.score(record(), "it is 2")).correct
        assert not (await scoring.score(record(domain="other"), "it is 2")).correct


def exact(name: str, weight: float | None, pattern: str = r"(\d+)", domains: tuple[str, ...] = ()) -> Reward:
    return Reward(name=name, weight=weight, domains=domains, exact=ExactReward(pattern=pattern))


async def test_rewards_with_weights_are_added_up_and_the_first_says_what_is_correct():
    rewards = exact("last", 1.0, r"(\d+)$"), exact("any", 0.25), exact("other", 8.0, domains=("other",))
    async with closing(Scoring(rewards)) as scoring:
        assert await scoring.score(record(), "it is 2") == Score(1.25, True)
        assert await scoring.score(record(), "2 or 3 2 it is") == Score(0.25, False)
        assert await scoring.score(record(), "3") == Score(0.0, False)


async def test_a_reward_without_a_weight_scores_alone_if_it_comes_first_and_not_at_all_otherwise():
    async with closing(Scoring((exact("alone", None), exact("weighted", 3.0)))) as alone:
        assert await alone.score(record(), "2") == Score(1.0, True)
    async with closing(Scoring((exact("weighted", 3.0), exact("alone", None)))) as beside:
        assert await beside.score(record(), "2") == Score(3.0, True)


async def test_a_part_that_cannot_be_scored_leaves_the_sample_without_a_score_and_is_named():
    gym = Reward(name="gym", weight=1.0, reasoning_gym=ReasoningGymReward())
    async with closing(Scoring((exact("text", 1.0), gym))) as scoring:
        with pytest.raises(Unscored) as caught:
            await scoring.score(record(), "2")
    assert caught.value.reason == "gym: the record does not name its reasoning-gym task"


def test_what_a_weighted_reward_needs_is_asked_of_every_record():
    scoring = Scoring((exact("text", 1.0), Reward(name="tests", weight=0.5, reasoning_gym=ReasoningGymReward())))
    with pytest.raises(UserError, match="reward tests needs meta"):
        scoring.check([record()])


def test_a_domain_without_a_reward_is_refused_before_the_start():
    scoring = Scoring((Reward(name="digits", domains=("sum",), exact=ExactReward()),))
    with pytest.raises(UserError, match="no reward has domain 'poem' of record r"):
        scoring.check([record(domain="poem"), record(domain="poem")])


def test_a_record_that_lacks_what_its_reward_needs_is_refused_before_the_start():
    with pytest.raises(UserError, match="record r: reward exact needs an answer"):
        Scoring((Reward(name="exact", exact=ExactReward()),)).check([record(answer=None)])


def test_a_callable_whose_module_is_nowhere_is_refused_before_the_start():
    with pytest.raises(UserError, match=r"spec\.rewards\[0\]\.python\.callable: module nowhere\.at_all"):
        Scoring((Reward.model_validate({"name": "mine", "python": {"callable": "nowhere.at_all:score"}}),))
