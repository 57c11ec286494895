# SPDX-License-Identifier: Apache-2.0
"""The score of the reasoning-gym task that made a problem. Runs in a worker: some verifiers run code of the answer."""

from tandem_api.records import Record
from tandem_api.spec.rewards import ReasoningGymReward
from tandem_orchestrator.rewards.score import Score, Unscored
from tandem_orchestrator.rewards.workers import WorkerPool

MEMORY = 4 * 2**30
SOURCE = "source_dataset"
"""Where the package notes in a problem's metadata which task made it."""


class ReasoningGymScorer:
    """What the task's own verifier gives, from 0 to 1; correct is a full score."""

    def __init__(self, reward: ReasoningGymReward, processes: int) -> None:
        settings = {"pattern": reward.pattern}
        self._pool = WorkerPool("reasoningGym", settings, count=processes, timeout=30.0, memory=MEMORY)

    async def score(self, record: Record, response: str) -> Score:
        if SOURCE not in (record.meta or {}):
            raise Unscored("the record does not name its reasoning-gym task", record.id)
        entry = {"question": record.prompt, "answer": record.answer, "metadata": record.meta}
        value = await self._pool.ask({"record": entry, "response": response})
        return Score(value, value >= 1.0)

    async def close(self) -> None:
        await self._pool.close()
