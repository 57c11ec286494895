# SPDX-License-Identifier: Apache-2.0
"""A chain-of-thought reward model behind an OpenAI-compatible URL (paper, section 2.3.5): reasons, then a verdict."""

import asyncio
import json
import os
import re
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import jinja2.sandbox

from tandem_api.errors import TryAgain
from tandem_api.records import Record
from tandem_api.spec.rewards import JudgeReward
from tandem_orchestrator.rewards.score import Score, Unscored

_TRIES = 4
_CONCURRENT = 32
_FIRST_WAIT = 0.5
_PASS = 0.5
_VERDICT = re.compile(r"\{[^{}]*\}")
_API_KEY = "OPENAI_API_KEY"

TEMPLATE = """\
You are grading an answer to a question. Reason step by step about whether the answer is right, then end with one
line of JSON: {"score": s}, where s is a number from 0 (wrong) to 1 (right).

Question:
{{ question }}
{% if answer is not none %}
Reference answer:
{{ answer }}
{% endif %}
Answer to grade:
{{ response }}
"""


class _Malformed(TryAgain):
    """The judge's reply holds no verdict."""


@dataclass
class Cost:
    """What a judge has used so far."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: dict[str, int] = field(default_factory=dict)


class JudgeScorer:
    """Asks the judge, at most 32 questions at a time; correct is a score of at least 0.5.

    A malformed verdict, a refused connection and HTTP 429 and 5xx are tried again, after waits that double. The
    environment variable OPENAI_API_KEY of the orchestrator, if set, is sent as bearer token.
    """

    def __init__(self, reward: JudgeReward) -> None:
        self._reward = reward
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
        self._template = environment.from_string(reward.template or TEMPLATE)
        self._slots = asyncio.Semaphore(_CONCURRENT)
        self._session: aiohttp.ClientSession | None = None
        self.cost = Cost()

    async def score(self, record: Record, response: str) -> Score:
        question = self._template.render(
            question=_question(record), answer=record.answer, response=response, record=record
        )
        async with self._slots:
            value = await self._persistently(question)
        return Score(value, value >= _PASS)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _persistently(self, question: str) -> float:
        wait = _FIRST_WAIT
        for attempt in range(1, _TRIES + 1):
            try:
                return verdict(await self._reply(question))
            except TryAgain as error:
                reason = "malformed verdict" if isinstance(error, _Malformed) else "the judge does not answer"
                self.cost.retries[reason] = self.cost.retries.get(reason, 0) + 1
                if attempt == _TRIES:
                    raise Unscored(reason, str(error)) from error
                await asyncio.sleep(wait)
                wait *= 2
        raise AssertionError("the loop returns or raises")

    async def _reply(self, question: str) -> str:
        if self._session is None:
            key = os.environ.get(_API_KEY)
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            timeout = aiohttp.ClientTimeout(total=self._reward.timeout)
            self._session = aiohttp.ClientSession(headers=headers, timeout=timeout)
        body = {"model": self._reward.model, "messages": [{"role": "user", "content": question}], "temperature": 0}
        url = self._reward.url.rstrip("/") + "/chat/completions"
        self.cost.requests += 1
        try:
            async with self._session.post(url, json=body) as reply:
                if reply.status == 429 or reply.status >= 500:
                    raise TryAgain(f"HTTP {reply.status}")
                if reply.status != 200:
                    raise Unscored("the judge refuses the question", f"HTTP {reply.status}")
                return self._counted(await reply.json(content_type=None))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TryAgain(f"{type(error).__name__}: {error}") from error
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _Malformed(f"the reply is no chat completion: {error}") from error

    def _counted(self, reply: dict[str, Any]) -> str:
        usage = reply.get("usage") or {}
        self.cost.prompt_tokens += usage.get("prompt_tokens") or 0
        self.cost.completion_tokens += usage.get("completion_tokens") or 0
        content: str = reply["choices"][0]["message"]["content"] or ""
        return content


def verdict(text: str) -> float:
    """The ``score`` (a number from 0 to 1, or a boolean) of the last JSON object of ``text`` that has one.

    Raises:
        TryAgain: there is none.
    """
    for piece in reversed(_VERDICT.findall(text)):
        try:
            score = json.loads(piece).get("score")
        except ValueError:
            continue
        if isinstance(score, int | float) and 0 <= score <= 1:
            return float(score)
    raise _Malformed(f"no verdict in a reply of {len(text)} characters")


def _question(record: Record) -> str:
    if record.prompt is not None:
        return record.prompt
    return "\n".join(f"{message.role}: {message.content}" for message in record.messages or ())
