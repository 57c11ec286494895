# SPDX-License-Identifier: Apache-2.0
"""Where the time of a job's accelerators goes, as a pure function of ``timeline.jsonl`` (docs/utilisation.md)."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise, zip_longest
from typing import Any

from tandem_api.messages.phases import PhaseName

type Line = Mapping[str, Any]
type Seconds = dict[int, dict["Use", float]]
"""Seconds by member index and use."""


class Use(StrEnum):
    """What a hybrid pod does with the accelerators that it holds. The first two are the work it holds them for."""

    ROLLOUT = "rollout"
    TRAIN = "train"
    RELEASE = "release"
    HANDOFF = "handoff"
    BARRIER = "barrier"
    TAIL = "tail"
    CHECKPOINT = "checkpoint"
    RECOVERY = "recovery"
    START = "start"


WORK = (Use.ROLLOUT, Use.TRAIN)
ROLLOUT_SECONDS = "rolloutSeconds"
CHECKPOINT_SECONDS = "checkpointSeconds"
MEASURED = (ROLLOUT_SECONDS, CHECKPOINT_SECONDS)
"""What an ack measured that its timeline line carries as ``measured``."""

_OWN_PART = {
    PhaseName.START: Use.START,
    PhaseName.WARMUP: Use.TRAIN,
    PhaseName.RELEASE: Use.RELEASE,
    PhaseName.TRAIN: Use.TRAIN,
    PhaseName.HANDOFF: Use.HANDOFF,
    PhaseName.SUSPENDED: Use.CHECKPOINT,
    PhaseName.SUCCEEDED: Use.CHECKPOINT,
}


@dataclass(slots=True)
class _Epoch:
    """One phase with its members' parts, as far as the timeline has them."""

    number: int
    phase: PhaseName
    start: float
    seconds: float
    parts: dict[int, Line] = field(default_factory=dict)

    @property
    def end(self) -> float:
        return self.start + self.seconds

    def measured(self, index: int, name: str) -> float | None:
        """What a member measured in this phase; None where it did not say."""
        value = self.parts.get(index, {}).get("measured", {}).get(name)
        return None if value is None else float(value)


def attribute(timeline: Iterable[Line], members: int) -> Seconds:
    """Seconds of each use, for each member; for each of them they add up to :func:`held` seconds.

    ``timeline`` may be in any order and may hold a phase twice (an orchestrator that was replaced while it booked a
    phase books it again): the last line counts.
    """
    epochs = _epochs(timeline)
    totals: Seconds = {index: dict.fromkeys(Use, 0.0) for index in range(members)}
    for epoch, following in zip_longest(epochs, epochs[1:]):
        for index, seconds in totals.items():
            for use, value in _uses(epoch, following, index).items():
                seconds[use] += value
    return totals


def held(timeline: Iterable[Line]) -> float:
    """Seconds for which each pod of the job held its accelerators: all phases, and the time between them unless the
    job was suspended."""
    epochs = _epochs(timeline)
    gaps = sum(_gap(epoch, following) for epoch, following in pairwise(epochs))
    return sum(epoch.seconds for epoch in epochs) + gaps


def shares(seconds: Mapping[Use, float]) -> dict[Use, float]:
    """Each use's share of the time held; they add up to 1. Empty for a pod that has held nothing yet."""
    total = sum(seconds.values())
    return {use: value / total for use, value in seconds.items()} if total > 0 else {}


def utilisation(seconds: Iterable[Mapping[Use, float]]) -> float | None:
    """Device-seconds of work over device-seconds held, of pods with as many accelerators each; None before any."""
    pods = list(seconds)
    total = sum(sum(pod.values()) for pod in pods)
    return sum(pod.get(use, 0.0) for pod in pods for use in WORK) / total if total > 0 else None


class Account:
    """The same sums, kept while a run goes on.

    A phase is booked once the phase after it has ended, since the Release says how long the Rollout was busy and a
    Recover that what came before it was lost: :meth:`add` takes the lines of one phase and returns what it could book.
    """

    def __init__(self, members: int) -> None:
        self._members = members
        self._open: Sequence[Line] = ()
        self._totals: Seconds = {index: dict.fromkeys(Use, 0.0) for index in range(members)}

    @property
    def totals(self) -> Seconds:
        """Everything booked so far."""
        return self._totals

    def add(self, lines: Sequence[Line]) -> Seconds:
        """Book the phase before the one that ``lines`` are of; again for the same phase replaces it."""
        before, self._open = _epochs(self._open), lines
        after = _epochs(lines)
        if not before or not after or before[0].number >= after[0].number:
            return {}
        booked = {index: _uses(before[0], after[0], index) for index in range(self._members)}
        for index, seconds in booked.items():
            for use, value in seconds.items():
                self._totals[index][use] += value
        return booked


def _epochs(timeline: Iterable[Line]) -> list[_Epoch]:
    """The phases in their order, each with its parts."""
    phases: dict[int, Line] = {}
    parts: dict[int, dict[int, Line]] = defaultdict(dict)
    for line in timeline:
        if line["index"] is None:
            phases[line["epoch"]] = line
        else:
            parts[line["epoch"]][line["index"]] = line
    return [
        _Epoch(number, PhaseName(line["phase"]), float(line["start"]), max(0.0, float(line["seconds"])), parts[number])
        for number, line in sorted(phases.items())
    ]


def _gap(epoch: _Epoch, following: _Epoch) -> float:
    """Held seconds between two phases. A suspended job holds nothing until it starts again."""
    return 0.0 if epoch.phase is PhaseName.SUSPENDED else max(0.0, following.start - epoch.end)


def _uses(epoch: _Epoch, following: _Epoch | None, index: int) -> dict[Use, float]:
    """How one member spent a phase and the time until the next."""
    uses: dict[Use, float] = defaultdict(float)
    failed = following is not None and following.phase is PhaseName.RECOVER
    if following is not None:
        uses[Use.RECOVERY if failed else Use.BARRIER] += _gap(epoch, following)
    if epoch.phase is PhaseName.ROLLOUT:
        for use, value in _rollout(epoch, following, index).items():
            uses[use] += value
    elif epoch.phase is PhaseName.RECOVER or failed:
        # What a phase that failed has done is done again.
        uses[Use.RECOVERY] += epoch.seconds
    else:
        for use, value in _part(epoch, index).items():
            uses[use] += value
    return dict(uses)


def _rollout(epoch: _Epoch, following: _Epoch | None, index: int) -> dict[Use, float]:
    """A Rollout's tokens are kept whatever follows, so its work counts wherever the member lived to tell of it."""
    if following is None:
        return {Use.ROLLOUT: epoch.seconds}
    busy = following.measured(index, ROLLOUT_SECONDS)
    if busy is None:
        lost = following.phase is PhaseName.RECOVER or index not in following.parts
        return {Use.RECOVERY if lost else Use.ROLLOUT: epoch.seconds}
    busy = min(max(0.0, busy), epoch.seconds)
    return {Use.ROLLOUT: busy, Use.TAIL: epoch.seconds - busy}


def _part(epoch: _Epoch, index: int) -> dict[Use, float]:
    """A member's own part of a phase, the checkpoint it wrote meanwhile, and its wait for the others."""
    own = min(max(0.0, float(epoch.parts.get(index, {}).get("seconds", 0.0))), epoch.seconds)
    use = _OWN_PART[epoch.phase]
    saved = min(epoch.measured(index, CHECKPOINT_SECONDS) or 0.0, own) if use is Use.TRAIN else 0.0
    parts = {Use.CHECKPOINT: saved, Use.BARRIER: epoch.seconds - own}
    parts[use] = parts.get(use, 0.0) + own - saved
    return parts
