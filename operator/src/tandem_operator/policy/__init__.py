# SPDX-License-Identifier: Apache-2.0
"""What to do about a job: pure functions of the RLJob and of what is observed. One policy a module."""

from dataclasses import dataclass

from tandem_api.messages.phases import DesiredState
from tandem_api.rljob import RLJobObject
from tandem_api.status import RLJobStatus
from tandem_operator.observed import Observed
from tandem_operator.plan import Suspension, identity
from tandem_operator.plan.platform import Gang
from tandem_operator.policy import failures, outcome, restarts, status, suspension, ttl
from tandem_operator.policy.announcements import Announcement, announcements
from tandem_operator.policy.outcome import FINISH_SECONDS, Outcome
from tandem_operator.times import unix

__all__ = ["Announcement", "Decision", "decide"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about a job now.

    ``active``: its objects should exist; once a job has ended they are only ever quieted, never made. ``withdrawn``:
    the hybrid Job is deleted for now. ``delete``: the RLJob's time to live is over. ``look_again``: Unix time at
    which the decision may change though nothing else does.
    """

    active: bool
    desired: DesiredState
    suspension: Suspension
    withdrawn: bool
    delete: bool
    status: RLJobStatus
    announcements: tuple[Announcement, ...]
    look_again: float | None


def decide(job: RLJobObject, observed: Observed, now: float, gang: Gang | None = None) -> Decision:
    """The decision at Unix time ``now``; ``gang`` is the cluster's gang-scheduling API."""
    ledger = restarts.count(job.status, observed)
    end = outcome.outcome(job, observed, ledger, now)
    wanted = _after_the_end(end, job, now) if end else suspension.standing(job, observed, now)
    new = status.status_of(job, observed, ledger, wanted, end, now, gang)
    delete_at = ttl.delete_at(job, new) if end else None
    return Decision(
        active=end is None,
        desired=wanted.desired,
        suspension=wanted.suspension,
        withdrawn=wanted.withdrawn,
        delete=delete_at is not None and now >= delete_at,
        status=new,
        announcements=announcements(job.status, new),
        look_again=_look_again(job, observed, wanted, delete_at, end, now),
    )


def _after_the_end(end: Outcome, job: RLJobObject, now: float) -> suspension.Standing:
    """A failed job lets go of everything at once; a successful one ends by itself, and is not waited for for ever."""
    completed = job.status.completion_time
    overdue = completed is not None and now - unix(completed) >= FINISH_SECONDS
    if end.succeeded and not overdue:
        return suspension.Standing(DesiredState.RUNNING, Suspension())
    queued = identity.queue(job) is not None
    return suspension.Standing(DesiredState.STOPPED, Suspension(hybrid=True, orchestrator=True), withdrawn=queued)


def _look_again(
    job: RLJobObject,
    observed: Observed,
    wanted: suspension.Standing,
    delete_at: float | None,
    end: Outcome | None,
    now: float,
) -> float | None:
    times = [delete_at, wanted.drained_by]
    limit = job.spec.run_policy.active_deadline_seconds
    if end is None and limit is not None and job.status.start_time:
        times.append(unix(job.status.start_time) + limit)
    if end is None and observed.phase is not None and observed.phase.name.final:
        times.append(observed.phase.started + FINISH_SECONDS)
    if end is not None and end.succeeded and any(work.active for work in observed.workloads):
        times.append(now + FINISH_SECONDS)
    times += [
        since
        for pod in observed.pods
        if pod.unschedulable and (since := pod.unschedulable_since + failures.PROVISIONING_SECONDS) > now
    ]
    times += [
        late for pod in observed.pods if pod.deleting and (late := pod.gone_by + failures.UNCONFIRMED_SECONDS) > now
    ]
    told = {failure.reason for failure in failures.troubles(observed, now)}
    times += [now + seconds for reason, seconds in failures.MEMORY_SECONDS.items() if reason in told]
    return min((time for time in times if time is not None), default=None)
