# SPDX-License-Identifier: Apache-2.0
"""A plan: which faults are to happen to a job, written one by one or drawn from a seed."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from tandem_api.base import Contract
from tandem_api.complaints import complaints
from tandem_api.errors import Problem, UserError
from tandem_api.field_paths import FieldPath, Place, dotted
from tandem_api.messages.phases import PhaseName
from tandem_api.scalars import Seconds, duration_of
from tandem_api.schema import structural
from tandem_api.yaml_lines import Document, read_documents


class Kind(StrEnum):
    """What happens."""

    KILL = "Kill"
    STOP = "Stop"
    SLOW_DOWN = "SlowDown"
    OUT_OF_MEMORY = "OutOfMemory"
    PARTITION = "Partition"
    FILL_DISK = "FillDisk"
    CORRUPT_SEGMENT = "CorruptSegment"
    LOSE_LEASE = "LoseLease"


class Component(StrEnum):
    """What it happens to. ``pod`` is a hybrid pod with both its containers."""

    ENGINE = "engine"
    SIDECAR = "sidecar"
    TRAINER = "trainer"
    ORCHESTRATOR = "orchestrator"
    ETCD = "etcd"
    POD = "pod"

    @property
    def in_pod(self) -> bool:
        """Whether each hybrid pod has one, so that an index tells them apart."""
        return self not in (Component.ORCHESTRATOR, Component.ETCD)


_PROCESSES = (Component.ENGINE, Component.SIDECAR, Component.TRAINER, Component.ORCHESTRATOR)
SUITS: dict[Kind, tuple[Component, ...]] = {
    Kind.KILL: tuple(Component),
    Kind.STOP: tuple(Component),
    Kind.SLOW_DOWN: tuple(Component),
    Kind.OUT_OF_MEMORY: _PROCESSES,
    Kind.PARTITION: (Component.POD, Component.ORCHESTRATOR),
    Kind.FILL_DISK: (Component.ORCHESTRATOR,),
    Kind.CORRUPT_SEGMENT: (Component.TRAINER,),
    Kind.LOSE_LEASE: (Component.SIDECAR, Component.ORCHESTRATOR),
}
"""What each kind can happen to."""

LASTING = frozenset({Kind.STOP, Kind.SLOW_DOWN, Kind.PARTITION, Kind.FILL_DISK})
"""Kinds that begin and end; the others are done at once."""

type Phase = Literal["Start", "Warmup", "Rollout", "Release", "Train", "Handoff", "Recover"]

_EVERYWHERE = (Kind.KILL, Kind.STOP, Kind.SLOW_DOWN, Kind.LOSE_LEASE)
_ITERATION: tuple[Phase, ...] = ("Rollout", "Release", "Train", "Handoff")
_FACTOR = 10.0


class Target(Contract):
    """What a fault happens to."""

    component: Component = Field(description="engine, sidecar, trainer, orchestrator, etcd, or pod: a hybrid pod.")
    index: int = Field(0, ge=0, lt=4096, description="Which hybrid pod.")


class PlannedFault(Contract):
    """A fault as it is written."""

    kind: Kind = Field(description="Kill, Stop, SlowDown, OutOfMemory, Partition, FillDisk, CorruptSegment, LoseLease.")
    target: Target = Field(description="What it happens to.")
    phase: Phase | None = Field(None, description="Phase in which it happens, the next that begins; absent: drawn.")
    after: Seconds | None = Field(None, description="Time into the phase; absent: at its begin.")
    for_: Seconds | None = Field(None, alias="for", description="How long it lasts, where it is not done at once.")
    factor: float | None = Field(None, gt=1, le=1000, description="SlowDown: how many times slower; absent: 10.")


class RandomFaults(Contract):
    """Faults that are drawn from the plan's seed."""

    count: int = Field(gt=0, le=1000, description="How many.")
    kinds: tuple[Kind, ...] = Field(_EVERYWHERE, min_length=1, max_length=32, description="Kinds to draw from.")
    components: tuple[Component, ...] = Field(
        tuple(Component), min_length=1, max_length=32, description="What they happen to, where the kind can."
    )
    phases: tuple[Phase, ...] = Field(_ITERATION, min_length=1, max_length=32, description="Phases to draw from.")
    pods: int = Field(1, gt=0, le=4096, description="Hybrid pods to draw from.")
    within: Seconds = Field(1.0, description="They happen in this first part of the phase.")
    longest: Seconds = Field(20.0, description="Longest time that one lasts.")


class Plan(Contract):
    """What a plan's file holds. The same file comes to the same faults on every machine."""

    seed: int = Field(0, ge=0, lt=2**63, description="All that is drawn comes from it.")
    faults: tuple[PlannedFault, ...] = Field((), max_length=1000, description="Faults, in their order.")
    random: RandomFaults | None = Field(None, description="Further faults, drawn.")

    def resolved(self) -> "tuple[Fault, ...]":
        """The faults in their order, nothing left open."""
        chance = random.Random(self.seed)
        written = [_written(fault, chance) for fault in self.faults]
        return (*written, *(_drawn(self.random, chance) for _ in range(self.random.count if self.random else 0)))


@dataclass(frozen=True, slots=True)
class Fault:
    """``kind`` happens to ``component`` (of pod ``index``) ``after`` seconds into the next ``phase`` that begins.

    ``seconds``: how long it lasts at most; 0 where it is done at once. ``factor``: of SlowDown.
    """

    kind: Kind
    component: Component
    phase: PhaseName
    index: int = 0
    after: float = 0.0
    seconds: float = 0.0
    factor: float = _FACTOR

    @property
    def what(self) -> str:
        """Kind and target: ``Kill engine 0``."""
        return f"{self.kind} {self.component}" + (f" {self.index}" if self.component.in_pod else "")

    def __str__(self) -> str:
        lasting = f" for {duration_of(round(self.seconds, 3))}" if self.kind in LASTING else ""
        return f"{self.what}{lasting} in {self.phase}"

    def written(self) -> dict[str, Any]:
        """As it stands in a plan."""
        target = {"component": self.component.value} | ({"index": self.index} if self.component.in_pod else {})
        fault: dict[str, Any] = {"kind": self.kind.value, "target": target, "phase": self.phase.value}
        for name, seconds in (("after", self.after), ("for", self.seconds)):
            if seconds:
                fault[name] = duration_of(round(seconds, 3))
        return fault | ({"factor": self.factor} if self.kind is Kind.SLOW_DOWN else {})


def load(path: Path) -> Plan:
    """The plan of a YAML file.

    Raises:
        UserError: with every problem of it, each with its field and line.
    """
    found = read_documents(path)
    if len(found) != 1 or not isinstance(found[0].value, dict):
        raise UserError(Problem(str(path), "must hold one mapping with seed, faults or random"))
    return _parsed(found[0])


def _parsed(document: Document) -> Plan:
    def problem(place: Place) -> Problem:
        return Problem(dotted(place[0]) or "plan", place[1], document.line_of(place[0]))

    if document.problems:
        raise UserError(*document.problems)
    try:
        plan = Plan.model_validate_json(json.dumps(document.value), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise UserError(*map(problem, complaints(error, structural(Plan), root=""))) from error
    if places := list(_contradictions(plan)):
        raise UserError(*map(problem, places))
    return plan


def dumped(faults: Sequence[Fault]) -> str:
    """Faults as a plan of their own, which leaves nothing to be drawn."""
    text: str = yaml.safe_dump({"faults": [fault.written() for fault in faults]}, sort_keys=False)
    return text


def _contradictions(plan: Plan) -> Iterator[Place]:
    if not plan.faults and plan.random is None:
        yield ("faults",), "is empty, and there is no random: the plan has no fault"
    for number, fault in enumerate(plan.faults):
        for path, message in _contradictions_of(fault):
            yield ("faults", number, *path), message
    for number, kind in enumerate(plan.random.kinds if plan.random else ()):
        assert plan.random is not None
        if not set(SUITS[kind]) & set(plan.random.components):
            yield ("random", "kinds", number), f"{kind} happens to none of random.components; it takes {_suiting(kind)}"


def _contradictions_of(fault: PlannedFault) -> Iterator[tuple[FieldPath, str]]:
    kind, component = fault.kind, fault.target.component
    if component not in SUITS[kind]:
        yield ("target", "component"), f"{kind} takes {_suiting(kind)}; found {component}"
    if fault.target.index and not component.in_pod:
        yield ("target", "index"), f"a job has one {component}; found {fault.target.index}"
    if kind in LASTING and fault.for_ is None:
        yield ("for",), f"is required: how long {kind} lasts, such as 15s"
    if kind not in LASTING and fault.for_ is not None:
        yield ("for",), f"{kind} is done at once and lasts for no time of its own; leave it out"
    if fault.factor is not None and kind is not Kind.SLOW_DOWN:
        yield ("factor",), f"belongs to SlowDown; this is {kind}"
    if kind is Kind.CORRUPT_SEGMENT and fault.phase not in (None, "Handoff"):
        yield ("phase",), f"CorruptSegment happens in Handoff, when there are segments; found {fault.phase}"


def _suiting(kind: Kind) -> str:
    return " or ".join(SUITS[kind])


def _written(fault: PlannedFault, chance: random.Random) -> Fault:
    return Fault(
        fault.kind,
        fault.target.component,
        _phase(fault.kind, _one(_ITERATION, chance) if fault.phase is None else fault.phase),
        fault.target.index,
        fault.after or 0.0,
        fault.for_ or 0.0,
        fault.factor or _FACTOR,
    )


def _drawn(faults: RandomFaults | None, chance: random.Random) -> Fault:
    assert faults is not None
    kind = _one(faults.kinds, chance)
    component = _one([one for one in SUITS[kind] if one in faults.components], chance)
    return Fault(
        kind,
        component,
        _phase(kind, _one(faults.phases, chance)),
        _one(range(faults.pods), chance) if component.in_pod else 0,
        # A handoff may take milliseconds, and its segments are only there while it lasts.
        0.0 if kind is Kind.CORRUPT_SEGMENT else round(chance.random() * faults.within, 3),
        round(max(chance.random() * faults.longest, 0.001), 3) if kind in LASTING else 0.0,
    )


def _phase(kind: Kind, phase: Phase) -> PhaseName:
    return PhaseName.HANDOFF if kind is Kind.CORRUPT_SEGMENT else PhaseName(phase)


def _one[T](things: Sequence[T], chance: random.Random) -> T:
    # Only random() is promised to give the same numbers in every version of Python.
    return things[int(chance.random() * len(things))]
