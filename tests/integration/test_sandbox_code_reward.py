# SPDX-License-Identifier: Apache-2.0
"""The code reward: programs of responses, run against a record's tests in a real sandbox."""

import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tandem_api.errors import UserError
from tandem_api.records import Record
from tandem_api.spec.rewards import CodeReward, Reward
from tandem_orchestrator.rewards.code import CodeScorer
from tandem_orchestrator.rewards.score import Score, Unscored
from tandem_orchestrator.rewards.scoring import Scoring

RIGHT = "Reads a number.\n```python\nprint(int(input()) * 2)\n```"
HALF = "```python\nn = int(input())\nprint(n * 2 if n < 3 else 0)\n```"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict() -> AsyncIterator[CodeScorer]:
    scorer = CodeScorer(CodeReward(timeout="60s"), "spec.rewards[0].code")
    yield scorer
    await scorer.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def partial() -> AsyncIterator[CodeScorer]:
    scorer = CodeScorer(CodeReward(timeout="60s", memory="128Mi", partial=True), "spec.rewards[0].code")
    yield scorer
    await scorer.close()


def doubling(count: int = 4) -> Record:
    tests = [{"input": f"{n}\n", "output": f"{2 * n}\n"} for n in range(1, count + 1)]
    return Record.model_validate({"id": "double", "domain": "code", "prompt": "Double it.", "tests": tests})


async def test_all_tests_passed_is_a_full_reward(strict: CodeScorer, partial: CodeScorer):
    assert await strict.score(doubling(), RIGHT) == Score(1.0, True)
    assert await partial.score(doubling(), RIGHT) == Score(1.0, True)


async def test_some_tests_passed_is_their_share_or_nothing(strict: CodeScorer, partial: CodeScorer):
    assert await strict.score(doubling(), HALF) == Score(0.0, False)
    assert await partial.score(doubling(), HALF) == Score(0.5, False)


async def test_verdicts_are_counted_killed_runs_by_rule(partial: CodeScorer):
    before = partial.verdicts.copy()
    await partial.score(doubling(2), "import socket\nsocket.socket()")
    await partial.score(doubling(1), "x = [0] * 10**9")
    await partial.score(doubling(1), "print(")
    assert partial.verdicts - before == {"killed: network": 2, "memory": 1, "crashed": 1}


async def test_a_response_that_is_no_program_is_wrong_not_unscored(strict: CodeScorer):
    assert await strict.score(doubling(), "I do not know.") == Score(0.0, False)
    assert await strict.score(doubling(), "\udc80\x00") == Score(0.0, False)


async def test_a_record_without_tests_cannot_be_scored(strict: CodeScorer):
    record = Record(id="r", domain="code", prompt="?")
    with pytest.raises(Unscored, match="no tests"):
        await strict.score(record, RIGHT)
    with pytest.raises(UserError, match="record r: reward code needs tests"):
        Scoring((Reward(name="code", code=CodeReward()),)).check([record])


async def test_a_zygote_that_was_killed_is_replaced(strict: CodeScorer):
    zygote = strict._sandbox._zygote
    assert zygote is not None
    os.kill(zygote.pid, signal.SIGKILL)
    zygote.wait()
    assert await strict.score(doubling(), RIGHT) == Score(1.0, True)
