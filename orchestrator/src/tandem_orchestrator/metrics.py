# SPDX-License-Identifier: Apache-2.0
"""What a run tells Prometheus. The driver says what happened; this puts it into the declared metrics."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from tandem_api import metrics as declared
from tandem_api.exposition import counter, gauge, histogram
from tandem_api.messages.phases import Ack, PhaseName, PhaseRecord, Progress, Switch
from tandem_api.spec import RLJobSpec
from tandem_api.utilisation import Account, Seconds, utilisation
from tandem_orchestrator.results import BatchSummary

_BUFFER_FILES = ("buffer.sqlite", "buffer.sqlite-wal")
_SWITCHES = (PhaseName.RELEASE, PhaseName.HANDOFF)


class RunMetrics:
    """The listener of one run.

    Life cycle: :meth:`entered` and :meth:`left` for each phase, :meth:`learned` for each iteration, :meth:`progressed`
    as often as progress is published. What the timeline of an earlier orchestrator holds is counted on from.
    """

    def __init__(self, spec: RLJobSpec, state_dir: Path, registry: CollectorRegistry) -> None:
        self._state_dir = state_dir
        self._account = Account(spec.hybrid.replicas)
        self._phase = gauge(declared.PHASE, registry)
        self._started = gauge(declared.PHASE_STARTED, registry)
        self._deadline = gauge(declared.PHASE_DEADLINE, registry)
        self._phase_seconds = counter(declared.PHASE_SECONDS, registry)
        self._held = counter(declared.ACCELERATOR_SECONDS, registry)
        self._busy = gauge(declared.BUSY_RATIO, registry)
        self._recoveries = counter(declared.RECOVERIES, registry)
        self._version = gauge(declared.WEIGHT_VERSION, registry)
        self._iteration = gauge(declared.ITERATION, registry)
        self._switches = _SwitchMetrics(spec, registry)
        self._learning = _LearningMetrics(registry)
        self._buffer = _BufferMetrics(registry)
        self._checkpoint = gauge(declared.CHECKPOINT_ITERATION, registry)
        self._iterations = gauge(declared.ITERATIONS, registry)
        self._iterations.set(spec.iterations)
        self._count_on(state_dir / "timeline.jsonl")

    def entered(self, record: PhaseRecord) -> None:
        """The job is in this phase now."""
        for name in PhaseName:
            self._phase.labels(name).set(name is record.name)
        self._started.set(record.started)
        self._deadline.set(record.deadline or 0.0)
        self._iteration.set(record.iteration)
        self._version.set(record.weight_version)

    def left(
        self, record: PhaseRecord, acks: Mapping[int, Ack], lines: Sequence[Mapping[str, Any]], failed: bool
    ) -> None:
        """This phase has ended; ``lines`` are what the timeline holds of it."""
        seconds = lines[0]["seconds"]
        self._phase_seconds.labels(record.name).inc(max(0.0, seconds))
        self._book(self._account.add(lines))
        if failed:
            self._recoveries.inc()
        else:
            self._switches.took(record, acks, seconds)

    def learned(self, line: Mapping[str, Any], batch: BatchSummary | None) -> None:
        """An iteration is over: its line of metrics.jsonl and its batch."""
        self._learning.learned(line, batch)

    def progressed(self, progress: Progress) -> None:
        """How far the run is."""
        self._checkpoint.set(progress.checkpoint_iteration or 0)
        self._iterations.set(progress.iterations)
        self._switches.switched(progress.last_switch)
        self._buffer.holds(progress, self._state_dir)

    def _count_on(self, timeline: Path) -> None:
        if not timeline.exists():
            return
        lines = [json.loads(line) for line in timeline.read_bytes().splitlines()]
        for _, phase in groupby(lines, key=lambda line: line["epoch"]):
            self._book(self._account.add(list(phase)))
        for line in lines:
            if line["index"] is None:
                self._phase_seconds.labels(line["phase"]).inc(max(0.0, line["seconds"]))

    def _book(self, booked: Seconds) -> None:
        for member, uses in booked.items():
            for use, seconds in uses.items():
                self._held.labels(member, use).inc(seconds)
            busy = utilisation([self._account.totals[member]])
            if busy is not None:
                self._busy.labels(member).set(busy)


class _SwitchMetrics:
    """What acks tell of each pod's part, and how the accelerators change hands."""

    def __init__(self, spec: RLJobSpec, registry: CollectorRegistry) -> None:
        self._parts = gauge(declared.MEMBER_PHASE_SECONDS, registry)
        self._barrier = histogram(declared.BARRIER_SECONDS, registry)
        steps = histogram(declared.SWITCH_STEP_SECONDS, registry)
        self._steps = {name: steps.labels(name) for name in declared.SWITCH_STEPS}
        self._residual = gauge(declared.RESIDUAL_BYTES, registry)
        self._switch = gauge(declared.SWITCH_SECONDS, registry)
        gauge(declared.RELEASE_BUDGET_BYTES, registry).set(spec.engine.release_budget)

    def took(self, record: PhaseRecord, acks: Mapping[int, Ack], seconds: float) -> None:
        for ack in acks.values():
            self._parts.labels(ack.index, record.name).set(ack.seconds)
            if record.name is PhaseName.RELEASE:
                self._residual.labels(ack.index).set(ack.measured.get("residualBytes", 0.0))
            if record.name in _SWITCHES:
                for step in ack.steps:
                    self._steps.get(step.name, self._steps[declared.OTHER]).observe(step.seconds)
        if acks:
            self._barrier.labels(record.name).observe(max(0.0, seconds - min(ack.seconds for ack in acks.values())))

    def switched(self, last: Switch) -> None:
        self._switch.labels("toTrain").set(last.to_train_seconds)
        self._switch.labels("toRollout").set(last.to_rollout_seconds)


class _LearningMetrics:
    """What an iteration brought. Before the first, nothing is known: NaN, which Grafana leaves out."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._by_key = {
            "seconds": gauge(declared.ITERATION_SECONDS, registry),
            "rewardMean": gauge(declared.REWARD, registry),
            "accuracyMean": gauge(declared.ACCURACY, registry),
            "evalAccuracy": gauge(declared.EVALUATION_ACCURACY, registry),
            "probeDifference": gauge(declared.PROBE_DIFFERENCE, registry),
            "loss": gauge(declared.LOSS, registry),
            "gradNorm": gauge(declared.GRADIENT_NORM, registry),
            "learningRate": gauge(declared.LEARNING_RATE, registry),
        }
        for metric in self._by_key.values():
            metric.set(float("nan"))
        self._response = gauge(declared.RESPONSE_TOKENS, registry)
        self._difference = gauge(declared.LOGPROB_DIFFERENCE, registry)
        self._tokens = counter(declared.TRAINED_TOKENS, registry)
        self._samples = counter(declared.SAMPLES, registry)
        self._staleness = gauge(declared.STALENESS, registry)

    def learned(self, line: Mapping[str, Any], batch: BatchSummary | None) -> None:
        for key, metric in self._by_key.items():
            _set(metric, line.get(key))
        for statistic in ("mean", "max"):
            _set(self._response, line.get(f"responseTokens{statistic.title()}"), statistic)
            _set(self._difference, line.get(f"logprobDiff{statistic.title()}"), statistic)
        if batch is not None:
            self._tokens.inc(batch.tokens)
            self._samples.labels("scored").inc(batch.samples)
            self._samples.labels("unscored").inc(sum(batch.unscored.values()))
            self._staleness.set(batch.age_max)


class _BufferMetrics:
    """What the replay buffer holds, and the room that it has."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._trajectories = gauge(declared.BUFFER_TRAJECTORIES, registry)
        self._tokens = gauge(declared.BUFFER_TOKENS, registry)
        self._bytes = gauge(declared.BUFFER_BYTES, registry)
        self._free = gauge(declared.BUFFER_FREE_BYTES, registry)
        self._full = gauge(declared.BUFFER_FULL, registry)

    def holds(self, progress: Progress, state_dir: Path) -> None:
        self._trajectories.labels("finished").set(progress.buffer.finished)
        self._trajectories.labels("partial").set(progress.buffer.partial)
        self._tokens.set(progress.buffer.tokens)
        self._bytes.set(sum(_sizes(state_dir / name for name in _BUFFER_FILES)))
        self._free.set(shutil.disk_usage(state_dir).free)
        self._full.set(progress.buffer_full)


def _sizes(paths: Iterable[Path]) -> list[int]:
    return [path.stat().st_size for path in paths if path.exists()]


def _set(metric: Gauge, value: float | None, *labels: str) -> None:
    """Leave a gauge as it was where an iteration measured nothing."""
    if value is not None:
        (metric.labels(*labels) if labels else metric).set(value)
