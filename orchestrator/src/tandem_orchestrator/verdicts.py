# SPDX-License-Identifier: Apache-2.0
"""Scoring beside the rollout: finished trajectories become verdicts in the buffer."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from tandem_api.records import Record
from tandem_orchestrator.buffer import Buffer, ScoreRow
from tandem_orchestrator.corpus import Corpus
from tandem_orchestrator.rewards.score import Unscored

log = structlog.get_logger()


class Verdicts:
    """Scores trajectories concurrently, each once, and tells when a verdict is on disk.

    Life cycle of a trajectory: :meth:`begin` -> scored -> stored -> ``settled`` is called with the verdict. A sample
    that cannot be scored gets a verdict without a value; what breaks in another way is kept in ``failed``, and
    ``broke`` is called.
    """

    def __init__(
        self,
        buffer: Buffer,
        corpus: Corpus,
        settled: Callable[[ScoreRow], Awaitable[None]],
        broke: Callable[[], None],
    ) -> None:
        self._buffer = buffer
        self._corpus = corpus
        self._settled = settled
        self._broke = broke
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.failed: BaseException | None = None

    def begin(self, trajectory: str, record: Record) -> None:
        """Score a finished trajectory, unless that is under way."""
        if trajectory not in self._tasks:
            self._tasks[trajectory] = task = asyncio.create_task(self._score(trajectory, record))
            task.add_done_callback(lambda task: self._ended(trajectory, task))

    async def wait(self, seconds: float) -> None:
        """Wait until what was begun is scored, but no longer than ``seconds``."""
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=seconds)

    async def stop(self) -> None:
        """Give up what is under way; it is still finished and unscored in the buffer."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ended(self, trajectory: str, task: asyncio.Task[None]) -> None:
        del self._tasks[trajectory]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("scoring broke", trajectory=trajectory, error=repr(error))
            self.failed = error
            self._broke()

    async def _score(self, trajectory: str, record: Record) -> None:
        generated = await self._buffer.generated([trajectory])
        text = self._corpus.tokenizer.text(generated[trajectory].tokens.tolist())
        try:
            score = await self._corpus.scoring.score(record, text)
            row = ScoreRow(trajectory, score.value, score.correct)
        except Unscored as error:
            log.warning("a response could not be scored", trajectory=trajectory, reason=str(error))
            row = ScoreRow(trajectory, None, error=error.reason)
        await self._buffer.score([row])
        await self._settled(row)
