# SPDX-License-Identifier: Apache-2.0
"""Equality of text. Runs in a worker: a regular expression can backtrack for ever."""

from tandem_api.records import Record
from tandem_api.spec.rewards import ExactReward
from tandem_orchestrator.rewards.score import Score, Unscored
from tandem_orchestrator.rewards.workers import WorkerPool

MEMORY = 2**30
SECONDS = 10.0


class ExactScorer:
    """1 if the response's answer is the record's, blanks around both aside."""

    def __init__(self, reward: ExactReward, processes: int) -> None:
        self._pool = (
            WorkerPool("exact", {"pattern": reward.pattern}, count=processes, timeout=SECONDS, memory=MEMORY)
            if reward.pattern
            else None
        )

    async def score(self, record: Record, response: str) -> Score:
        if record.answer is None:
            raise Unscored("the record has no answer", record.id)
        answer = str(record.answer)
        if self._pool is None:
            correct = response.strip() == answer.strip()
        else:
            correct = await self._pool.ask({"record": {"answer": answer}, "response": response}) == 1.0
        return Score(float(correct), correct)

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()
