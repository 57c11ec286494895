# SPDX-License-Identifier: Apache-2.0
"""What a run left behind, as the report and the closing summary read it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tandem_api.errors import Problem, UserError
from tandem_api.manifest import read
from tandem_api.status import RLJobStatus
from tandem_api.utilisation import Seconds, attribute, utilisation

_WORK = ("warmup", "rollout", "train")
_SWITCHING = ("release", "handoff")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Summary:
    """The headline numbers of a run; None where it did not get that far.

    ``utilisation``: share of the held time that is rollout or training work (docs/utilisation.md); of a run without a
    timeline, the share of those phases. ``switch_share``: share of the time in the phases in which they change hands.
    ``tokens_per_second``: generated tokens over all that time.
    """

    iterations: int
    accuracy_before: float | None
    accuracy_after: float | None
    seconds: float
    utilisation: float | None
    switch_share: float | None
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True)
class RunData:
    """A run's metrics (one row an iteration), timeline (one row a phase, and one a member of it), status and spec."""

    name: str
    directory: Path
    metrics: tuple[Row, ...]
    timeline: tuple[Row, ...]
    status: RLJobStatus
    spec: dict[str, Any]

    @property
    def uses(self) -> Seconds:
        """What each pod held its accelerators for (docs/utilisation.md)."""
        members = 1 + max((row["index"] for row in self.timeline if row["index"] is not None), default=-1)
        return attribute(self.timeline, members)

    @property
    def summary(self) -> Summary:
        accuracies = [row["evalAccuracy"] for row in self.metrics if row.get("evalAccuracy") is not None]
        by_phase = phase_seconds(self.metrics, self.timeline)
        total = sum(by_phase.values())
        tokens = sum(row.get("tokens") or 0 for row in self.metrics)
        return Summary(
            iterations=self.status.iteration or sum(row.get("rewardMean") is not None for row in self.metrics),
            accuracy_before=accuracies[0] if accuracies else None,
            accuracy_after=accuracies[-1] if accuracies else None,
            seconds=total,
            utilisation=utilisation(self.uses.values()) if self.timeline else _share(by_phase, _WORK, total),
            switch_share=_share(by_phase, _SWITCHING, total),
            tokens_per_second=tokens / total if tokens and total else None,
        )


def load(directory: Path) -> RunData:
    """What the directory of a run holds; files that are not there yet count as empty.

    Raises:
        UserError: the directory holds no run, or a file of it cannot be read.
    """
    job_file = directory / "job.yaml"
    if not job_file.exists():
        raise UserError(Problem(str(directory), "holds no run: there is no job.yaml"))
    job = read(job_file)
    return RunData(
        name=str(job.metadata.get("name", directory.name)),
        directory=directory,
        metrics=_rows(directory / "metrics.jsonl"),
        timeline=_rows(directory / "timeline.jsonl"),
        status=_status(directory / "status.json"),
        spec=job.spec,
    )


def phase_seconds(metrics: Sequence[Row], timeline: Sequence[Row]) -> dict[str, float]:
    """Seconds spent in each phase, by its lower-case name: the timeline's, or where there is none the metrics'."""
    totals: dict[str, float] = {}
    phases = [(row["phase"], row["seconds"]) for row in timeline if row.get("index") is None]
    if not phases:
        phases = [item for row in metrics for item in (row.get("phaseSeconds") or {}).items()]
    for name, seconds in phases:
        totals[name.lower()] = totals.get(name.lower(), 0.0) + seconds
    return totals


def _share(by_phase: dict[str, float], names: Sequence[str], total: float) -> float | None:
    return sum(by_phase.get(name, 0.0) for name in names) / total if total else None


def rows(text: str, name: str) -> tuple[Row, ...]:
    """The whole lines of a file of JSON lines that is called ``name`` in errors.

    Raises:
        UserError: a line is no JSON.
    """
    found = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        # The last line may be half written by a run that goes on.
        if not line.endswith("\n"):
            break
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise UserError(Problem(f"{name}:{number}", f"is no JSON: {error}")) from error
    return tuple(found)


def _rows(path: Path) -> tuple[Row, ...]:
    return rows(path.read_text(encoding="utf-8"), str(path)) if path.exists() else ()


def _status(path: Path) -> RLJobStatus:
    if not path.exists():
        return RLJobStatus()
    try:
        return RLJobStatus.model_validate_json(path.read_text())
    except ValidationError as error:
        raise UserError(Problem(str(path), f"is no RLJob status: {error.errors()[0]['msg']}")) from error
