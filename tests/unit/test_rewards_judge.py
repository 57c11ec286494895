# SPDX-License-Identifier: Apache-2.0
"""The judge: verdicts are read from its reasoning, and what fails for now is asked again."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tandem_api.errors import TryAgain
from tandem_api.records import Record
from tandem_api.spec.rewards import JudgeReward
from tandem_orchestrator.rewards import judge
from tandem_orchestrator.rewards.judge import JudgeScorer, verdict
from tandem_orchestrator.rewards.score import Score, Unscored

RECORD = Record(id="r", domain="open", prompt="Why is the sky blue?", answer="scattering")

type Answer = Callable[[dict[str, Any]], tuple[int, str]]


@asynccontextmanager
async def judging(answer: Answer, **settings: Any) -> AsyncIterator[JudgeScorer]:
    """A scorer whose judge answers with ``answer``'s HTTP status and text."""

    async def complete(request: web.Request) -> web.Response:
        status, text = answer(await request.json())
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        body = json.dumps({"choices": [{"message": {"content": text}}], "usage": usage})
        return web.Response(status=status, text=body, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    async with TestServer(app) as server:
        scorer = JudgeScorer(JudgeReward(url=str(server.make_url("/v1")), model="grader", **settings))
        yield scorer
        await scorer.close()


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "_FIRST_WAIT", 0.001)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('It is right.\n{"score": 1}', 1.0),
        ('{"score": 0.25}', 0.25),
        ('First {"score": 0}. On reflection {"score": 0.5, "why": "half"}', 0.5),
        ('{"score": 0.75} and then {"note": "done"}', 0.75),
        ('```json\n{"score": true}\n```', 1.0),
    ],
)
def test_the_last_verdict_counts(text: str, score: float):
    assert verdict(text) == score


@pytest.mark.parametrize("text", ["", "right", '{"score": 2}', '{"score": "1"}', "{score: 1}", '{"score": null}'])
def test_what_is_no_verdict_is_asked_again(text: str):
    with pytest.raises(TryAgain):
        verdict(text)


async def test_the_question_holds_prompt_answer_and_response():
    asked: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> tuple[int, str]:
        asked.append(body)
        return 200, '{"score": 0.9}'

    async with judging(answer) as scorer:
        assert await scorer.score(RECORD, "Rayleigh") == Score(0.9, True)
        assert (scorer.cost.requests, scorer.cost.prompt_tokens, scorer.cost.completion_tokens) == (1, 10, 5)
    question = asked[0]["messages"][0]["content"]
    assert asked[0]["model"] == "grader"
    assert all(part in question for part in ("Why is the sky blue?", "scattering", "Rayleigh"))


async def test_a_template_of_the_users_own_is_rendered_in_a_sandbox():
    def answer(body: dict[str, Any]) -> tuple[int, str]:
        return 200, body["messages"][0]["content"]

    async with judging(answer, template='{"score": {{ response | length / 10 }}}') as scorer:
        assert (await scorer.score(RECORD, "four")).value == 0.4


async def test_malformed_verdicts_and_errors_of_the_server_are_tried_again():
    replies = iter([(500, ""), (429, ""), (200, "hm"), (200, '{"score": 1}')])
    async with judging(lambda body: next(replies)) as scorer:
        assert (await scorer.score(RECORD, "x")).correct
        assert scorer.cost.retries == {"the judge does not answer": 2, "malformed verdict": 1}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((200, "hm"), "malformed verdict"),
        ((503, ""), "the judge does not answer"),
        ((400, ""), "the judge refuses the question"),
    ],
)
async def test_a_judge_that_never_gives_a_verdict_marks_the_sample_with_the_reason(reply: tuple[int, str], reason: str):
    async with judging(lambda body: reply) as scorer:
        with pytest.raises(Unscored) as caught:
            await scorer.score(RECORD, "x")
    assert caught.value.reason == reason


async def test_questions_are_asked_side_by_side_but_not_all_at_once():
    asking, most, free = 0, 0, asyncio.Event()

    async def complete(request: web.Request) -> web.Response:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        if asking == judge._CONCURRENT:
            free.set()
        await free.wait()
        asking -= 1
        return web.json_response({"choices": [{"message": {"content": '{"score": 1}'}}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    async with TestServer(app) as server:
        scorer = JudgeScorer(JudgeReward(url=str(server.make_url("/v1")), model="grader"))
        scores = await asyncio.gather(*(scorer.score(RECORD, str(n)) for n in range(100)))
        await scorer.close()
    assert all(score.correct for score in scores)
    assert most == judge._CONCURRENT
