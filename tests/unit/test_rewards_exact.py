# SPDX-License-Identifier: Apache-2.0
"""Answers are taken out of responses and compared as text; rewards are chosen by domain."""

import re
from typing import Any

import pytest

from tandem_api.errors import UserError
from tandem_api.records import Record
from tandem_api.spec.rewards import ExactReward, ReasoningGymReward, Reward
from tandem_orchestrator.rewards.exact import ExactScorer, final_answer
from tandem_orchestrator.rewards.score import Score, Unscored
from tandem_orchestrator.rewards.scoring import Scoring


def record(**fields: Any) -> Record:
    return Record(**({"id": "r", "domain": "sum", "prompt": "1 + 1 =", "answer": "2"} | fields))


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


async def test_equal_text_scores_one():
    scorer = ExactScorer(ExactReward(pattern=r"(\d+)$"))
    assert await scorer.score(record(), "so it is 2") == Score(1.0, True)
    assert await scorer.score(record(), "so it is 3") == Score(0.0, False)


async def test_a_record_without_an_answer_cannot_be_scored():
    with pytest.raises(Unscored, match="no answer"):
        await ExactScorer(ExactReward()).score(record(answer=None), "2")


async def test_the_first_reward_whose_domains_match_is_used():
    scoring = Scoring(
        (
            Reward(name="digits", domains=("sum",), exact=ExactReward(pattern=r"(\d+)")),
            Reward(name="rest", exact=ExactReward()),
        )
    )
    assert (await scoring.score(record(), "it is 2")).correct
    assert not (await scoring.score(record(domain="other"), "it is 2")).correct


def exact(name: str, weight: float | None, pattern: str = r"(\d+)", domains: tuple[str, ...] = ()) -> Reward:
    return Reward(name=name, weight=weight, domains=domains, exact=ExactReward(pattern=pattern))


async def test_rewards_with_weights_are_added_up_and_the_first_says_what_is_correct():
    scoring = Scoring((exact("last", 1.0, r"(\d+)$"), exact("any", 0.25), exact("other", 8.0, domains=("other",))))
    assert await scoring.score(record(), "it is 2") == Score(1.25, True)
    assert await scoring.score(record(), "2 or 3 2 it is") == Score(0.25, False)
    assert await scoring.score(record(), "3") == Score(0.0, False)


async def test_a_reward_without_a_weight_scores_alone_if_it_comes_first_and_not_at_all_otherwise():
    alone = Scoring((exact("alone", None), exact("weighted", 3.0)))
    assert await alone.score(record(), "2") == Score(1.0, True)
    beside = Scoring((exact("weighted", 3.0), exact("alone", None)))
    assert await beside.score(record(), "2") == Score(3.0, True)


async def test_a_part_that_cannot_be_scored_leaves_the_sample_without_a_score_and_is_named():
    scoring = Scoring((exact("text", 1.0), Reward(name="gym", weight=1.0, reasoning_gym=ReasoningGymReward())))
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
