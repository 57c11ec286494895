# SPDX-License-Identifier: Apache-2.0
"""RLJob.status from what is observed. The operator writes it to the API server, local mode to status.json."""

from tandem_api.labels import HYBRID
from tandem_api.messages.phases import DesiredState, PhaseName, Progress
from tandem_api.rljob import RLJobObject
from tandem_api.status import (
    BufferStatus,
    CheckpointStatus,
    ConditionType,
    JobPhase,
    PhaseSeconds,
    RLJobStatus,
    SandboxStatus,
    SwitchStatus,
)
from tandem_operator.observed import Observed
from tandem_operator.plan.gang import gang_of
from tandem_operator.plan.platform import Gang
from tandem_operator.policy.conditions import Judgement, updated
from tandem_operator.policy.failures import Trouble, troubles
from tandem_operator.policy.outcome import Outcome
from tandem_operator.policy.restarts import DISRUPTED, Ledger, disrupted
from tandem_operator.policy.suspension import Standing
from tandem_operator.times import rfc3339

_PHASES = {
    PhaseName.START: JobPhase.STARTING,
    PhaseName.WARMUP: JobPhase.WARMUP,
    PhaseName.HANDOFF: JobPhase.HANDOFF,
    PhaseName.ROLLOUT: JobPhase.ROLLOUT,
    PhaseName.RELEASE: JobPhase.RELEASE,
    PhaseName.TRAIN: JobPhase.TRAIN,
    PhaseName.RECOVER: JobPhase.RECOVERING,
    PhaseName.SUSPENDED: JobPhase.SUSPENDED,
}


def status_of(
    job: RLJobObject,
    observed: Observed,
    ledger: Ledger,
    standing: Standing,
    outcome: Outcome | None,
    now: float,
    gang: Gang | None = None,
) -> RLJobStatus:
    """The status to write. What etcd says is carried over from ``job.status`` while etcd says nothing."""
    status = _with_progress(_with_phase(job.status, observed), observed.progress)
    found = () if outcome else troubles(observed, now)
    phase = _phase(job, observed, standing, outcome)
    judgements = _judgements(job, observed, ledger, standing, outcome, found, phase, gang)
    started = status.start_time or (None if standing.suspension.hybrid else rfc3339(now))
    ready = len([pod for pod in observed.active_pods(HYBRID) if pod.ready])
    generation = job.metadata.generation
    return status.model_copy(
        update={
            "phase": phase,
            "restarts": ledger.restarts,
            "disruptions": ledger.disruptions,
            "hybrid_ready": f"{ready}/{job.spec.hybrid.replicas}",
            "start_time": started,
            "completion_time": (status.completion_time or rfc3339(now)) if outcome else None,
            "conditions": updated(job.status.conditions, judgements, generation, now),
            "observed_generation": generation,
        }
    )


def _with_phase(status: RLJobStatus, observed: Observed) -> RLJobStatus:
    record = observed.phase
    if record is None:
        return status
    return status.model_copy(
        update={"epoch": record.epoch, "iteration": record.iteration, "weight_version": record.weight_version}
    )


def _with_progress(status: RLJobStatus, progress: Progress | None) -> RLJobStatus:
    if progress is None:
        return status
    known = {name: seconds for name, seconds in progress.phase_seconds.items() if name in PhaseSeconds.model_fields}
    saved = progress.checkpoint_iteration
    return status.model_copy(
        update={
            "reward": progress.reward,
            "accuracy": progress.eval_accuracy if progress.eval_accuracy is not None else status.accuracy,
            "buffer": BufferStatus(**progress.buffer.model_dump()),
            "phase_seconds": PhaseSeconds(**known),
            "last_switch": SwitchStatus(**progress.last_switch.model_dump()),
            "skipped_records": progress.skipped_records,
            "sandbox": _sandbox(progress) or status.sandbox,
            "checkpoint": status.checkpoint
            if saved is None
            else CheckpointStatus(iteration=saved, path=progress.checkpoint_path or ""),
        }
    )


def _sandbox(progress: Progress) -> SandboxStatus | None:
    if not progress.sandbox:
        return None
    return SandboxStatus(
        held=tuple(name for name, holds in progress.sandbox.items() if holds),
        lacking=tuple(name for name, holds in progress.sandbox.items() if not holds),
    )


def _phase(job: RLJobObject, observed: Observed, standing: Standing, outcome: Outcome | None) -> JobPhase:
    if outcome is not None:
        return JobPhase.SUCCEEDED if outcome.succeeded else JobPhase.FAILED
    if observed.phase is not None:
        return _PHASES.get(observed.phase.name, job.status.phase)
    if standing.suspension.hybrid:
        return JobPhase.SUSPENDED if standing.desired is DesiredState.SUSPENDED else JobPhase.PENDING
    if job.status.epoch:
        return job.status.phase
    placed = [pod for pod in observed.active_pods(HYBRID) if pod.scheduled]
    return JobPhase.STARTING if len(placed) == job.spec.hybrid.replicas else JobPhase.PENDING


def _judgements(
    job: RLJobObject,
    observed: Observed,
    ledger: Ledger,
    standing: Standing,
    outcome: Outcome | None,
    found: tuple[Trouble, ...],
    phase: JobPhase,
    gang: Gang | None,
) -> tuple[Judgement, ...]:
    if outcome is not None:
        return _of_the_end(outcome)
    return (
        _scheduled(job, observed, standing, found, gang),
        _ready(job, observed, ledger),
        _progressing(job, found, phase),
        _degraded(found),
        _suspended(job, standing),
    )


def _of_the_end(outcome: Outcome) -> tuple[Judgement, ...]:
    kind = ConditionType.COMPLETE if outcome.succeeded else ConditionType.FAILED
    return (
        Judgement(ConditionType.READY, "False", "Finished"),
        Judgement(ConditionType.PROGRESSING, "False", "Finished"),
        Judgement(ConditionType.DEGRADED, "False", "Finished"),
        Judgement(ConditionType.SUSPENDED, "False", "Finished"),
        Judgement(kind, "True", outcome.reason, outcome.message),
    )


def _scheduled(
    job: RLJobObject, observed: Observed, standing: Standing, found: tuple[Trouble, ...], gang: Gang | None
) -> Judgement:
    wanted = job.spec.hybrid.replicas
    placed = len([pod for pod in observed.active_pods(HYBRID) if pod.scheduled])
    trouble = next((one for one in found if one.placement), None)
    if trouble is not None:
        return Judgement(ConditionType.SCHEDULED, "False", trouble.reason, trouble.message)
    if standing.suspension.hybrid:
        return Judgement(ConditionType.SCHEDULED, "False", "Suspended", "Suspended jobs have no pods.")
    by = gang_of(job, gang)
    if placed < wanted:
        how = f" {by.value} places them together or not at all." if by else ""
        message = f"{placed} of {wanted} hybrid pods are placed.{how}"
        return Judgement(ConditionType.SCHEDULED, "False", "Pending", message)
    if wanted == 1:
        return Judgement(ConditionType.SCHEDULED, "True", "Placed", "The hybrid pod is placed.")
    if by is None:
        message = "All hybrid pods are placed, one by one, since the cluster has no gang-scheduling API."
        return Judgement(ConditionType.SCHEDULED, "True", "PlacedOneByOne", message)
    return Judgement(ConditionType.SCHEDULED, "True", "Placed", f"All hybrid pods are placed, together by {by.value}.")


def _ready(job: RLJobObject, observed: Observed, ledger: Ledger) -> Judgement:
    wanted = job.spec.hybrid.replicas
    ready = len([pod for pod in observed.active_pods(HYBRID) if pod.ready])
    message = f"{ready} of {wanted} hybrid pods are ready."
    if ready >= wanted:
        return Judgement(ConditionType.READY, "True", "AllPodsReady", message)
    # The next operator must still know why the members will start anew, though the pod may be gone by then.
    if disrupted(job.status, observed) and ledger.disruptions == job.status.disruptions:
        return Judgement(ConditionType.READY, "False", DISRUPTED, f"A pod was taken away, or its node lost. {message}")
    return Judgement(ConditionType.READY, "False", "PodsNotReady", message)


def _progressing(job: RLJobObject, found: tuple[Trouble, ...], phase: JobPhase) -> Judgement:
    if phase is JobPhase.SUSPENDED:
        return Judgement(ConditionType.PROGRESSING, "False", "Suspended", "The job is suspended.")
    if phase in (JobPhase.PENDING, JobPhase.STARTING) and found:
        return Judgement(ConditionType.PROGRESSING, "False", found[0].reason, found[0].message)
    return Judgement(ConditionType.PROGRESSING, "True", phase.value)


def _degraded(found: tuple[Trouble, ...]) -> Judgement:
    if not found:
        return Judgement(ConditionType.DEGRADED, "False", "AsExpected")
    return Judgement(ConditionType.DEGRADED, "True", found[0].reason, found[0].message)


def _suspended(job: RLJobObject, standing: Standing) -> Judgement:
    if standing.desired is not DesiredState.SUSPENDED:
        return Judgement(ConditionType.SUSPENDED, "False", "Running")
    if not job.spec.run_policy.suspend:
        return Judgement(ConditionType.SUSPENDED, "True", "Queued", "The queue has not admitted the job yet.")
    if standing.suspension.hybrid:
        return Judgement(ConditionType.SUSPENDED, "True", "Suspended", "runPolicy.suspend is set.")
    return Judgement(
        ConditionType.SUSPENDED, "Unknown", "Draining", "Work is being drained and saved before the pods go."
    )
