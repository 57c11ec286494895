# SPDX-License-Identifier: Apache-2.0
"""What comes next, as a pure function of what is known (phases.md)."""

from dataclasses import dataclass, replace

from tandem_api.messages.phases import DesiredState, PhaseName, PhaseRecord


@dataclass(frozen=True, slots=True)
class Facts:
    """What the orchestrator knows when a phase has ended.

    ``failure`` is why the phase did not end well (a failed ack, a lost member, a deadline), ``restarts_left`` whether
    another recovery is allowed. ``batch_ready``: the batch of the record's iteration is complete and stored.
    ``durable_iteration`` and ``checkpoint``: the newest checkpoint on disk. ``evaluated``: the final weights were.
    """

    iterations: int
    desired: DesiredState = DesiredState.RUNNING
    warmup: bool = False
    batch_ready: bool = False
    evaluated: bool = False
    failure: str | None = None
    restarts_left: bool = True
    durable_iteration: int | None = None
    checkpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Next:
    """The next phase but for its epoch, times and members, which the writer fills in."""

    name: PhaseName
    iteration: int
    weight_version: int
    world: int
    checkpoint: str | None = None
    reason: str | None = None
    restarts: int = 0


def first_phase(facts: Facts, world: int = 1, reason: str | None = None, restarts: int = 0) -> Next:
    """Start, from the newest checkpoint or from the model's source."""
    done = facts.durable_iteration or 0
    return Next(PhaseName.START, done, done, world, facts.checkpoint, reason, restarts)


def failed(record: PhaseRecord, reason: str) -> Next:
    """The end of a run that cannot go on."""
    return replace(_here(record), name=PhaseName.FAILED, reason=reason)


def _here(record: PhaseRecord) -> Next:
    return Next(record.name, record.iteration, record.weight_version, record.world, restarts=record.restarts)


def next_phase(record: PhaseRecord, facts: Facts) -> Next:
    """The phase that follows ``record``.

    A failure leads to Recover with a new world, from the newest checkpoint; when no recovery is left, to Failed.
    A user's wish to suspend is granted at the next point where nothing is lost: after Release, Train or Handoff.
    """
    if facts.desired is DesiredState.STOPPED:
        return failed(record, "stopped by the user or a deadline")
    if facts.failure is not None:
        if not facts.restarts_left:
            return failed(record, f"no restarts left: {facts.failure}")
        return replace(
            first_phase(facts, record.world + 1, facts.failure, record.restarts + 1),
            name=PhaseName.RECOVER,
        )
    return _after(record, _here(record), facts)


def _after(record: PhaseRecord, here: Next, facts: Facts) -> Next:
    suspending = facts.desired is DesiredState.SUSPENDED
    match record.name:
        case PhaseName.START | PhaseName.RECOVER:
            return replace(here, name=_first_work(record, facts))
        case PhaseName.WARMUP:
            return replace(here, name=PhaseName.SUSPENDED if suspending else PhaseName.HANDOFF)
        case PhaseName.HANDOFF:
            return replace(here, name=PhaseName.RELEASE if suspending else PhaseName.ROLLOUT)
        case PhaseName.ROLLOUT:
            if record.iteration >= facts.iterations and facts.evaluated:
                return replace(here, name=PhaseName.SUCCEEDED, checkpoint=facts.checkpoint)
            return replace(here, name=PhaseName.RELEASE)
        case PhaseName.RELEASE:
            if suspending or not facts.batch_ready:
                return replace(here, name=PhaseName.SUSPENDED if suspending else PhaseName.HANDOFF)
            return replace(here, name=PhaseName.TRAIN)
        case PhaseName.TRAIN:
            trained = replace(here, iteration=here.iteration + 1, weight_version=here.weight_version + 1)
            return replace(trained, name=PhaseName.SUSPENDED if suspending else PhaseName.HANDOFF)
        case PhaseName.SUSPENDED:
            return first_phase(facts, record.world + 1, "resumed", record.restarts)
        case PhaseName.SUCCEEDED | PhaseName.FAILED:
            raise ValueError(f"nothing follows {record.name}")


def _first_work(record: PhaseRecord, facts: Facts) -> PhaseName:
    """After a start the trainers hold the device: what they can do first, they do before the engines get it."""
    if facts.warmup and record.iteration == 0 and record.checkpoint is None:
        return PhaseName.WARMUP
    return PhaseName.TRAIN if facts.batch_ready else PhaseName.HANDOFF
