# SPDX-License-Identifier: Apache-2.0
"""Scoring in processes that can be killed: real math-verify, real reasoning-gym, a user's own module."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fake_cluster import state_of
from math_pairs import DISAGREED, HOSTILE, RIGHT, WRONG
from waiting import DEADLINE, reached

from tandem_api.records import Record
from tandem_api.spec.data import DataSpec
from tandem_api.spec.rewards import MathReward, PythonReward, ReasoningGymReward
from tandem_orchestrator.prompts import read_prompt_sets
from tandem_orchestrator.rewards.mathematical import MathScorer
from tandem_orchestrator.rewards.reasoning import ReasoningGymScorer
from tandem_orchestrator.rewards.score import Score, Unscored
from tandem_orchestrator.rewards.user_callable import PythonScorer

HOSTILE_SECONDS = 3.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def math() -> AsyncIterator[MathScorer]:
    scorer = MathScorer(MathReward(timeout="60s"), processes=1)
    await scorer.score(record("1"), "1")
    yield scorer
    await scorer.close()


def record(answer: str | None, **fields: Any) -> Record:
    return Record(id="r", domain="math", prompt="?", answer=answer, **fields)


@pytest.mark.asyncio(loop_scope="module")
async def test_math_verdicts_agree_with_a_careful_reader(math: MathScorer, capsys: pytest.CaptureFixture[str]):
    table = [(pair, True) for pair in RIGHT] + [(pair, False) for pair in WRONG]
    disagreed = []
    for (answer, response), right in table:
        if (await math.score(record(answer), response)).correct is not right:
            disagreed.append((answer, response))
    agreement = 1 - len(disagreed) / len(table)
    with capsys.disabled():
        print(f"\nmath verdicts: {agreement:.1%} of {len(table)} pairs agree")
    assert len(table) + len(HOSTILE) >= 350
    assert disagreed == list(DISAGREED)
    assert agreement > 0.99


async def test_hostile_expressions_cost_no_more_than_the_timeout_and_are_never_right(
    capsys: pytest.CaptureFixture[str],
):
    scorer = MathScorer(MathReward(timeout=f"{HOSTILE_SECONDS:g}s"), processes=2)
    await scorer.score(record("42"), "42")

    async def seconds(response: str) -> float:
        began = time.monotonic()
        with contextlib.suppress(Unscored):
            assert not (await scorer.score(record("42"), response)).correct
        return time.monotonic() - began

    pairs = zip(HOSTILE[::2], HOSTILE[1::2], strict=True)
    longest = max([max(await asyncio.gather(seconds(first), seconds(second))) for first, second in pairs])
    with capsys.disabled():
        print(f"\nhostile expressions: the longest of {len(HOSTILE)} took {longest:.1f} s")
    # Without a limit they take hours. What is over the limit is this machine's load, and the start of a new process.
    assert longest < DEADLINE
    assert (await scorer.score(record("42"), "42")).correct
    await scorer.close()


async def test_made_problems_are_scored_by_the_package_that_made_them():
    source = {"task": "chain_sum", "size": 20}
    problems = read_prompt_sets(DataSpec.model_validate({"prompts": [{"reasoningGym": source}]}), seed=1).training
    scorer = ReasoningGymScorer(ReasoningGymReward(pattern=r"=\s*(-?\d+)$"), processes=1)
    for problem in problems:
        assert await scorer.score(problem, f"1=1 ={problem.answer}") == Score(1.0, True)
        assert not (await scorer.score(problem, f"={int(problem.answer or 0) + 1}")).correct
        assert await scorer.score(problem, "no answer") == Score(0.0, False)
    await scorer.close()


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "users_rewards.py").write_text(
        "import os, time\n"
        "def length(record, response):\n"
        "    print('a callable may print')\n"
        "    return len(response) / len(record['prompt'])\n"
        "def hang(record, response):\n"
        "    time.sleep(3600 if response == 'hang' else 0)\n"
        "    return 1\n"
        "def die(record, response):\n"
        "    return os.abort() if response == 'die' else 1\n"
        "def fail(record, response):\n"
        "    return 1 / 0\n"
        "def eat(record, response):\n"
        "    return len(bytearray(2**40))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def scorer_of(name: str, timeout: str = "5s", processes: int = 1) -> PythonScorer:
    return PythonScorer(PythonReward(callable=f"users_rewards:{name}", timeout=timeout), processes)


async def test_a_users_callable_gives_its_value_and_may_print(user_module: Path):
    scorer = scorer_of("length", timeout="30s")
    assert await scorer.score(record(None), "ab") == Score(2.0, True)
    await scorer.close()


@pytest.mark.parametrize(
    ("name", "response", "reason"),
    [
        ("hang", "hang", "scoring took too long"),
        ("die", "die", "the scoring process died"),
        ("fail", "x", "the scoring code failed"),
        ("eat", "x", "the scoring code failed"),
    ],
)
async def test_a_callable_that_misbehaves_marks_its_sample_and_the_next_is_scored(
    user_module: Path, name: str, response: str, reason: str
):
    scorer = scorer_of(name)
    with pytest.raises(Unscored) as caught:
        await scorer.score(record(None), response)
    assert caught.value.reason == reason
    if name in ("hang", "die"):
        assert (await scorer.score(record(None), "well")).correct
    await scorer.close()


async def test_a_callable_that_cannot_be_loaded_says_why(user_module: Path):
    with pytest.raises(Unscored, match="cannot be loaded: AttributeError"):
        await scorer_of("absent").score(record(None), "x")


async def test_closing_leaves_no_process(user_module: Path):
    scorer = scorer_of("hang", timeout="60s", processes=2)
    await asyncio.gather(*(scorer.score(record(None), "well") for _ in range(2)))
    answering = [worker._answering for worker in scorer._pool._all]
    asking = [asyncio.create_task(scorer.score(record(None), "hang")) for _ in range(2)]
    await asyncio.sleep(0)
    assert all(map(alive, answering))
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    await scorer.close()
    await reached(lambda: not any(map(alive, answering)), DEADLINE, "the end of the workers")


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has waited for yet does not."""
    return state_of(pid) not in ("Z", "X")


def test_a_worker_whose_orchestrator_is_gone_ends(tmp_path: Path):
    """Killed before the worker was ready, an orchestrator hears nothing any more, and says nothing."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "tandem_orchestrator.rewards.worker", "exact", '{"pattern": null}', str(2**30)]
    with (tmp_path / "empty").open("w+b") as nothing:
        worker = subprocess.Popen(command, stdin=nothing, stdout=writing)
    os.close(writing)
    try:
        assert worker.wait(60) == 0
    finally:
        worker.kill()
