# SPDX-License-Identifier: Apache-2.0
"""Mathematical equality of final answers, by math-verify. Runs in a worker: an expression can take for ever."""

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
