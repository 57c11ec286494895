# SPDX-License-Identifier: Apache-2.0
"""Where a run's time goes and what its acks measured, as they come: into metrics, timeline and progress."""

import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tandem_api.messages.phases import Ack, PhaseName, PhaseRecord, Switch
from tandem_api.utilisation import MEASURED
from tandem_orchestrator.results import BatchSummary


@dataclass
class Ledger:
    """The books of one run in memory.

    ``total`` holds the seconds of each phase since the run began, ``iteration`` those of the iteration in progress,
    ``steps`` the slowest member's seconds of each step of its switches, ``last_switch`` the phases Release (to the
    trainer) and Handoff (to the engine) when they were last left.
    """

    total: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    iteration: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    steps: dict[str, float] = field(default_factory=dict)
    trained: Mapping[str, float] = field(default_factory=dict)
    began: float = 0.0
    last_switch: Switch = field(default_factory=Switch)
    probe_difference: float | None = None

    def begin_iteration(self, now: float) -> None:
        self.iteration.clear()
        self.steps.clear()
        self.trained = {}
        self.began = now

    def leave(self, record: PhaseRecord, now: float, acks: Mapping[int, Ack]) -> None:
        """Book a phase that has ended."""
        name = record.name.lower()
        self.total[name] += now - record.started
        self.iteration[name] += now - record.started
        if record.name in (PhaseName.RELEASE, PhaseName.HANDOFF):
            for ack in acks.values():
                for step in ack.steps:
                    self.steps[step.name] = max(self.steps.get(step.name, 0.0), step.seconds)
        if record.name is PhaseName.RELEASE:
            residual = max((ack.measured.get("residualBytes", 0.0) for ack in acks.values()), default=0.0)
            change = {"to_train_seconds": now - record.started, "release_residual_bytes": int(residual)}
            self.last_switch = self.last_switch.model_copy(update=change)
        if record.name is PhaseName.HANDOFF:
            self.last_switch = self.last_switch.model_copy(update={"to_rollout_seconds": now - record.started})
            self.probe_difference = _mean_of(acks).get("probeDifference")
        if record.name is PhaseName.TRAIN:
            self.train(acks)

    def train(self, acks: Mapping[int, Ack]) -> None:
        """Keep what the members measured in a Train for the iteration's line."""
        self.trained = _mean_of(acks)

    def line(
        self, weight_version: int, batch: BatchSummary | None, accuracy: float | None, now: float
    ) -> dict[str, Any]:
        """The line of ``metrics.jsonl`` for the iteration in progress, less its number."""
        rollout = self.iteration.get("rollout", 0.0)
        numbers = ("loss", "gradNorm", "learningRate", "logprobDiffMean", "logprobDiffMax")
        return {
            "weightVersion": weight_version,
            "startedAt": self.began,
            "seconds": max(0.0, now - self.began),
            "phaseSeconds": dict(self.iteration),
            "switchSteps": dict(self.steps),
            "evalAccuracy": accuracy,
            "rewardMean": batch and batch.reward_mean,
            "accuracyMean": batch and batch.accuracy_mean,
            "responseTokensMean": batch and batch.response_tokens_mean,
            "responseTokensMax": batch and batch.response_tokens_max,
            "tokens": batch.tokens if batch else 0,
            "tokensPerSecond": batch.tokens / rollout if batch and rollout else None,
            **{name: self.trained.get(name) for name in numbers},
            "probeDifference": self.probe_difference,
        }


def timeline_lines(record: PhaseRecord, acks: Mapping[int, Ack], now: float) -> list[dict[str, Any]]:
    """The lines of ``timeline.jsonl`` for a phase that has ended: the phase, and each member's part of it."""
    common = {"epoch": record.epoch, "iteration": record.iteration, "phase": record.name.value}
    phase = {**common, "index": None, "start": record.started, "seconds": now - record.started}
    parts = [
        {
            **common,
            "index": ack.index,
            "start": record.started if ack.start is None else ack.start,
            "seconds": ack.seconds,
            "steps": [step.model_dump() for step in ack.steps],
            "measured": {name: ack.measured[name] for name in MEASURED if name in ack.measured},
        }
        for ack in acks.values()
    ]
    return [phase, *parts]


def _mean_of(acks: Mapping[int, Ack]) -> dict[str, float]:
    """What the members measured: the mean, but for names that end in Max the largest."""
    values: dict[str, list[float]] = defaultdict(list)
    for ack in acks.values():
        for name, value in ack.measured.items():
            values[name].append(value)
    return {name: max(found) if name.endswith("Max") else statistics.fmean(found) for name, found in values.items()}
