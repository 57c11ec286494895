# SPDX-License-Identifier: Apache-2.0
"""A callable of the user's: ``score(record: dict, response: str) -> float``. Runs in a worker."""

import importlib.util

from tandem_api.errors import Problem, UserError
from tandem_api.records import Record
from tandem_api.spec.rewards import PythonReward
from tandem_orchestrator.rewards.score import Score
from tandem_orchestrator.rewards.workers import WorkerPool

MEMORY = 16 * 2**30


class PythonScorer:
    """The callable's value; correct is 1 or more."""

    def __init__(self, reward: PythonReward, processes: int) -> None:
        self._pool = WorkerPool(
            "python", {"target": reward.callable}, count=processes, timeout=reward.timeout, memory=MEMORY
        )

    async def score(self, record: Record, response: str) -> Score:
        value = await self._pool.ask(
            {"record": record.model_dump(mode="json", by_alias=True, exclude_none=True), "response": response}
        )
        return Score(value, value >= 1.0)

    async def close(self) -> None:
        await self._pool.close()


def check(reward: PythonReward, where: str) -> None:
    """Refuse a callable whose module is nowhere, before anything is started. The module is not run here.

    Raises:
        UserError: the module cannot be found.
    """
    module = reward.callable.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise UserError(Problem(where, f"module {module} cannot be imported by the orchestrator; is it in its image?"))
