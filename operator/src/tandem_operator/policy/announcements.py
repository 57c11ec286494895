# SPDX-License-Identifier: Apache-2.0
"""Which changes of status a person would want to read of in ``kubectl describe``."""

from collections.abc import Iterator
from dataclasses import dataclass

from tandem_api.status import ConditionType, JobPhase, RLJobStatus

_TOLD = {
    JobPhase.STARTING: "Pods are starting.",
    JobPhase.WARMUP: "The supervised warm-up has begun.",
    JobPhase.SUSPENDED: "The job is suspended; its devices are free.",
}


@dataclass(frozen=True, slots=True)
class Announcement:
    """A Kubernetes Event to be written."""

    reason: str
    message: str
    warning: bool = False


def announcements(before: RLJobStatus, after: RLJobStatus) -> tuple[Announcement, ...]:
    """What changed between two statuses, in the order in which it is told."""
    return tuple(_changes(before, after))


def _changes(before: RLJobStatus, after: RLJobStatus) -> Iterator[Announcement]:
    if after.phase is not before.phase:
        yield from _of_phase(before, after)
    if after.restarts > before.restarts:
        yield Announcement("Restarted", f"The job recovers from a failure (restart {after.restarts}).", warning=True)
    elif after.disruptions > before.disruptions and before.phase is not JobPhase.SUSPENDED:
        yield Announcement("Disrupted", "The job starts again after a pod was taken away; this is no restart.")
    held = {condition.type: condition for condition in before.conditions}
    for condition in after.conditions:
        known = held.get(condition.type)
        news = known is None or (known.status, known.reason) != (condition.status, condition.reason)
        if condition.type is ConditionType.DEGRADED and condition.status == "True" and news:
            yield Announcement(condition.reason, condition.message, warning=True)
        if condition.type in (ConditionType.COMPLETE, ConditionType.FAILED) and news:
            failed = condition.type is ConditionType.FAILED
            yield Announcement(condition.reason, condition.message, warning=failed)


def _of_phase(before: RLJobStatus, after: RLJobStatus) -> Iterator[Announcement]:
    if before.phase is JobPhase.SUSPENDED and after.phase is not JobPhase.FAILED:
        yield Announcement("Resumed", f"The job goes on at iteration {after.iteration}.")
    elif text := _TOLD.get(after.phase):
        yield Announcement(after.phase.value, text)
    elif after.phase is JobPhase.ROLLOUT and before.iteration == 0 and before.phase is JobPhase.HANDOFF:
        yield Announcement("Rollout", "The first rollout has begun.")
