# SPDX-License-Identifier: Apache-2.0
"""Answers are taken out of responses and compared as text; rewards are chosen by domain."""

import re
from typing import Any

import pytest

from tandem_api.errors import UserError
from tandem_api.records import Record
from tandem_api.spec.rewards import ExactReward, Reward
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
