# SPDX-License-Identifier: Apache-2.0
"""Suspend: drain, save, then let the devices go. Resume: the other way round.

The hybrid Job is suspended only once the phase says that the job is at rest, or when that takes too long.

Under a queue (Kueue) the queue alone writes the hybrid Job's ``suspend``, and with it the template's node selector: the
Job is made suspended, the queue admits it, and may take it back. A user's suspension, and a failure, take the whole Job
away: that gives the quota back, while a Job that is merely suspended would be admitted again. Resuming makes it anew.
"""

from dataclasses import dataclass

from tandem_api.labels import HYBRID
from tandem_api.messages.phases import DesiredState, PhaseName
from tandem_api.rljob import RLJobObject
from tandem_api.status import Condition, ConditionType, JobPhase
from tandem_operator.observed import Observed
from tandem_operator.plan import Suspension, identity
from tandem_operator.times import unix

DRAIN_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Standing:
    """What is wanted of the processes and of the workloads.

    ``withdrawn``: the hybrid Job is to be deleted for now. ``drained_by``: when draining is given up, Unix seconds.
    """

    desired: DesiredState
    suspension: Suspension
    withdrawn: bool = False
    drained_by: float | None = None


def standing(job: RLJobObject, observed: Observed, now: float) -> Standing:
    """What a job that has not ended should be doing."""
    queued = identity.queue(job) is not None
    if job.spec.run_policy.suspend:
        deadline = _drain_deadline(job, now)
        resting = _resting(job, observed) or now >= deadline
        suspension = Suspension(hybrid=resting, orchestrator=not _begun(job, observed))
        return Standing(DesiredState.SUSPENDED, suspension, queued and resting, None if resting else deadline)
    if queued:
        hybrid = observed.workload(HYBRID)
        waiting = hybrid is None or hybrid.suspended
        state = DesiredState.SUSPENDED if waiting else DesiredState.RUNNING
        return Standing(state, Suspension(hybrid=waiting, orchestrator=waiting and not _begun(job, observed)))
    return Standing(DesiredState.RUNNING, Suspension())


def _begun(job: RLJobObject, observed: Observed) -> bool:
    """Status remembers it while etcd is away."""
    return observed.phase is not None or job.status.epoch > 0


def _resting(job: RLJobObject, observed: Observed) -> bool:
    if observed.phase is not None:
        return observed.phase.name is PhaseName.SUSPENDED
    return not _begun(job, observed) or job.status.phase is JobPhase.SUSPENDED


def _drain_deadline(job: RLJobObject, now: float) -> float:
    asked = suspended_condition(job.status.conditions)
    draining = asked is not None and asked.reason == "Draining"
    return (unix(asked.last_transition_time) if asked and draining else now) + DRAIN_SECONDS


def suspended_condition(conditions: tuple[Condition, ...]) -> Condition | None:
    return next((found for found in conditions if found.type is ConditionType.SUSPENDED), None)
