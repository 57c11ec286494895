# SPDX-License-Identifier: Apache-2.0
"""Mathematical equality of final answers, by math-verify. Runs in a worker: an expression can take for ever."""

import logging
from collections.abc import Callable
from typing import Any

from tandem_api.records import Record
from tandem_api.spec.rewards import MathReward
from tandem_orchestrator.rewards.score import Score, Unscored
from tandem_orchestrator.rewards.workers import WorkerPool

MEMORY = 2 * 2**30


class MathScorer:
    """1 if the response's final answer equals the record's as a mathematical value."""

    def __init__(self, reward: MathReward, processes: int) -> None:
        self._pool = WorkerPool("math", {}, count=processes, timeout=reward.timeout, memory=MEMORY)

    async def score(self, record: Record, response: str) -> Score:
        if record.answer is None:
            raise Unscored("the record has no answer", record.id)
        value = await self._pool.ask({"record": {"answer": str(record.answer)}, "response": response})
        return Score(value, value >= 1.0)

    async def close(self) -> None:
        await self._pool.close()


def load() -> Callable[[dict[str, Any], str], float]:
    """In the worker: a function of (record, response)."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)

    def parsed(text: str) -> list[Any]:
        # Time is limited from outside, by killing this process: the package's own alarm cannot stop a long C call.
        found: list[Any] = parse(text, parsing_timeout=None)
        return found

    def score(record: dict[str, Any], response: str) -> float:
        answer = record["answer"]
        references = parsed(answer if _delimited(answer) else f"${answer}$") or parsed(answer)
        return float(verify(references, parsed(response), timeout_seconds=None))

    return score


def _delimited(answer: str) -> bool:
    return any(mark in answer for mark in ("$", "\\boxed", "\\(", "\\["))
