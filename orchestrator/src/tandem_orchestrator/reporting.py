# SPDX-License-Identifier: Apache-2.0
"""Tells the operator how far the job is: the ``progress`` key, at most once a second."""

import asyncio

import structlog

from tandem_api.errors import Fenced, TryAgain
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import PhaseName, PhaseRecord, Progress
from tandem_orchestrator.ledger import Ledger
from tandem_orchestrator.metrics import RunMetrics
from tandem_orchestrator.run import Run
from tandem_phases.leadership import Leadership
from tandem_phases.mirror import Mirror
from tandem_phases.phase import current
from tandem_phases.store import Store

log = structlog.get_logger()

_PERIOD_SECONDS = 1.0


class Reporter:
    """Writes progress as long as we lead: no decision depends on it, but an old leader must not hide a new one's."""

    def __init__(
        self,
        store: Store,
        mirror: Mirror,
        keys: JobKeys,
        leadership: Leadership,
        run: Run,
        ledger: Ledger,
        metrics: RunMetrics,
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._keys = keys
        self._leadership = leadership
        self._run = run
        self._ledger = ledger
        self._metrics = metrics

    async def report(self) -> None:
        """Publish until cancelled."""
        while True:
            await asyncio.sleep(_PERIOD_SECONDS)
            await self.publish()

    async def publish(self) -> None:
        """Write the progress as it is now."""
        seen = current(self._mirror.entries, self._keys)
        if seen is None:
            return
        progress = await self._progress(seen.record)
        self._metrics.progressed(progress)
        try:
            await self._store.commit((self._leadership.fence,), {self._keys.progress: progress.wire()})
        except (TryAgain, Fenced) as error:
            log.warning("progress was not written", error=str(error))

    async def _progress(self, record: PhaseRecord) -> Progress:
        lines = self._run.metrics.lines
        last = lines[-1] if lines else {}
        done, wanted = self._run.rollout_done()
        durable = await self._run.resume_point()
        switch = self._ledger.last_switch
        return Progress(
            iteration=record.iteration,
            iterations=self._run.spec.iterations,
            reward=shown(last.get("rewardMean")),
            eval_accuracy=shown(next((a for line in reversed(lines) if (a := line["evalAccuracy"]) is not None), None)),
            tokens_per_second=shown(last.get("tokensPerSecond")),
            rollout_done=done,
            rollout_wanted=wanted,
            buffer=await self._run.buffer_counts(),
            phase_seconds={name: round(seconds, 3) for name, seconds in self._ledger.total.items()},
            last_switch=switch.model_copy(
                update={
                    "to_train_seconds": shown(switch.to_train_seconds),
                    "to_rollout_seconds": shown(switch.to_rollout_seconds),
                }
            ),
            checkpoint_iteration=durable.iteration if durable.checkpoint else None,
            checkpoint_path=durable.checkpoint,
            skipped_records=self._run.skipped_records,
            buffer_full=self._run.buffer_full,
            sandbox=self._run.sandbox,
            error=record.reason if record.name in (PhaseName.FAILED, PhaseName.RECOVER) else None,
        )


def shown(value: float | None) -> float | None:
    """``value`` to four significant digits: people read it in columns, and metrics.jsonl has all of it."""
    return None if value is None else float(f"{value:.4g}")
