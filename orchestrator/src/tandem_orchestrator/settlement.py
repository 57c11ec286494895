# SPDX-License-Identifier: Apache-2.0
"""Books what a phase brought: times, numbers, batches, checkpoints."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog

from tandem_api.messages.phases import Ack, PhaseName, PhaseRecord
from tandem_orchestrator.attendance import Ended
from tandem_orchestrator.ledger import Ledger, timeline_lines
from tandem_orchestrator.metrics import RunMetrics
from tandem_orchestrator.run import Run

if TYPE_CHECKING:
    # OpenTelemetry is imported only where a collector is named.
    from tandem_orchestrator.traces import Traces

log = structlog.get_logger()

_AFTER_TRAIN = (PhaseName.HANDOFF, PhaseName.SUSPENDED)


class Settlement:
    """What is done once at the end of each phase. All of it may be done again, by an orchestrator that follows."""

    def __init__(self, run: Run, ledger: Ledger, metrics: RunMetrics, traces: "Traces | None" = None) -> None:
        self._run = run
        self._ledger = ledger
        self._metrics = metrics
        self._traces = traces
        self.evaluated = False
        """Whether the final weights were evaluated."""

    def take_over(self, record: PhaseRecord, before: Mapping[int, Ack]) -> None:
        """Go on with a phase that another orchestrator wrote, after one that was acked with ``before``."""
        self._ledger.begin_iteration(record.started)
        after_train = record.iteration > 0 and any("loss" in ack.measured for ack in before.values())
        if record.name in _AFTER_TRAIN and after_train:
            self._ledger.train(before)
        self.enter(record)

    def enter(self, record: PhaseRecord) -> None:
        """A phase begins."""
        if record.name in (PhaseName.START, PhaseName.RECOVER, PhaseName.ROLLOUT):
            self._ledger.begin_iteration(record.started)
        self._metrics.entered(record)

    async def settle(self, record: PhaseRecord, ended: Ended, now: float, *, running: bool) -> None:
        """A phase has ended, at ``now``; ``running``: the user wants the job to go on."""
        self._ledger.leave(record, now, ended.acks)
        lines = timeline_lines(record, ended.acks, now)
        for line in lines:
            self._run.timeline.write(line)
        self._metrics.left(record, ended.acks, lines, failed=ended.failure is not None)
        if self._traces is not None:
            self._traces.left(lines, ended.failure)
        if record.name in _AFTER_TRAIN and self._ledger.trained:
            # However it ended: what was trained may be durable, and then nobody trains it again.
            self._write_metrics(record.iteration - 1, record.weight_version - 1, now)
        if ended.failure is not None:
            log.error("the phase failed", name=record.name, iteration=record.iteration, failure=ended.failure)
            return
        match record.name:
            case PhaseName.ROLLOUT if record.iteration >= self._run.spec.iterations:
                await self._close_rollout(running)
                self._write_metrics(record.iteration, record.weight_version, now)
                self.evaluated = self._run.rollout_complete
            case PhaseName.RELEASE:
                await self._close_rollout(running)
            case PhaseName.TRAIN:
                await self._durable(record.iteration + 1, ended)
            case PhaseName.WARMUP | PhaseName.SUSPENDED:
                await self._durable(record.iteration, ended)

    async def _close_rollout(self, running: bool) -> None:
        """Write the batch, unless the user suspends an iteration that is not complete: it goes on when resumed."""
        if running or self._run.rollout_complete:
            await self._run.close_rollout()

    async def _durable(self, iteration: int, ended: Ended) -> None:
        saved = next((ack.checkpoint for ack in ended.acks.values() if ack.checkpoint), None)
        if saved is not None:
            await self._run.durable(iteration, saved)
            log.info("checkpoint is durable", iteration=iteration, path=saved)

    def _write_metrics(self, iteration: int, weight_version: int, now: float) -> None:
        batch, accuracy = self._run.batch_summary(iteration), self._run.accuracy(iteration)
        line = self._ledger.line(weight_version, batch, accuracy, now)
        self._run.trained(iteration, line)
        self._metrics.learned(line, batch)
