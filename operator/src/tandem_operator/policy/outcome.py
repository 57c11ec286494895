# SPDX-License-Identifier: Apache-2.0
"""Whether a job has ended. Once it has, it stays so: nothing of it is ever made or run again."""

from dataclasses import dataclass

from tandem_api.labels import HYBRID, ORCHESTRATOR
from tandem_api.messages.phases import PhaseName
from tandem_api.rljob import RLJobObject
from tandem_api.status import Condition, ConditionType, RLJobStatus
from tandem_operator.observed import Observed
from tandem_operator.policy.restarts import Ledger
from tandem_operator.times import unix

FINISH_SECONDS = 600.0
"""How long the hybrid pods may take to write the final weights after the last phase."""

_ENDS = (ConditionType.COMPLETE, ConditionType.FAILED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended."""

    succeeded: bool
    reason: str
    message: str


def ended(status: RLJobStatus) -> Condition | None:
    """The condition that says that the job has ended."""
    return next((found for found in status.conditions if found.type in _ENDS and found.status == "True"), None)


def outcome(job: RLJobObject, observed: Observed, ledger: Ledger, now: float) -> Outcome | None:
    """The end of the job, judged anew or as its status has it; None while it goes on."""
    if known := ended(job.status):
        return Outcome(known.type is ConditionType.COMPLETE, known.reason, known.message)
    return _succeeded(job, observed, now) or _failed(job, observed, ledger, now)


def _succeeded(job: RLJobObject, observed: Observed, now: float) -> Outcome | None:
    count = observed.phase.iteration if observed.phase else job.spec.iterations
    done = Outcome(True, "IterationsCompleted", f"All {count} iterations are done.")
    hybrid, orchestrator = observed.workload(HYBRID), observed.workload(ORCHESTRATOR)
    record = observed.phase
    if record is not None and record.name is PhaseName.SUCCEEDED:
        writing = hybrid is not None and not hybrid.complete and now - record.started < FINISH_SECONDS
        return None if writing else done
    if record is None and hybrid and orchestrator and hybrid.complete and orchestrator.complete:
        return done
    return None


def _failed(job: RLJobObject, observed: Observed, ledger: Ledger, now: float) -> Outcome | None:
    policy = job.spec.run_policy
    limit = policy.active_deadline_seconds
    if limit is not None and job.status.start_time and now - unix(job.status.start_time) >= limit:
        return Outcome(False, "DeadlineExceeded", f"The job ran longer than runPolicy.activeDeadlineSeconds ({limit}).")
    if invalid := _invalid(job, observed):
        return Outcome(False, "InvalidData", invalid)
    if ledger.restarts > policy.max_restarts:
        return Outcome(
            False,
            "RestartsExhausted",
            f"It failed more often than runPolicy.maxRestarts ({policy.max_restarts}) allows.",
        )
    if observed.phase is not None and observed.phase.name is PhaseName.FAILED:
        return Outcome(False, "RunFailed", observed.phase.reason or "The orchestrator gave the run up.")
    for workload in observed.workloads:
        if workload.failed:
            return Outcome(False, "WorkloadFailed", f"Job {workload.name} failed: {workload.failed}")
    return None


def _invalid(job: RLJobObject, observed: Observed) -> str | None:
    """What the orchestrator finds wrong before the job begins. Later it may be a volume that is away for a while."""
    if observed.phase is not None or job.status.epoch:
        return None
    pods = (pod for pod in observed.pods if pod.component == ORCHESTRATOR)
    return next((container.user_error for pod in pods for container in pod.containers if container.user_error), None)
