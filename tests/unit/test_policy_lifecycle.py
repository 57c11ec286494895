# SPDX-License-Identifier: Apache-2.0
"""What the operator decides over a job's life: suspension, restarts, deadline, the end, and what comes after it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from operator_fixture import NOW, hybrid_pod, record, rljob, running, workloads

from tandem_api.labels import ORCHESTRATOR
from tandem_api.messages.phases import DesiredState, PhaseName, Progress
from tandem_api.rljob import RLJobObject
from tandem_api.status import Condition, ConditionType, JobPhase, RLJobStatus
from tandem_operator.observed import Container, Observed, Pod
from tandem_operator.plan import Suspension
from tandem_operator.policy import Decision, decide
from tandem_operator.policy.outcome import FINISH_SECONDS
from tandem_operator.policy.suspension import DRAIN_SECONDS
from tandem_operator.times import rfc3339

QUEUE = {"kueue.x-k8s.io/queue-name": "team"}


def condition(status: RLJobStatus, kind: ConditionType) -> Condition:
    return next(found for found in status.conditions if found.type is kind)


def went_on(job: RLJobObject, decision: Decision) -> RLJobObject:
    """The job after the decision's status was written."""
    return job.model_copy(update={"status": decision.status})


def ended(job: RLJobObject, reason: str = "RunFailed") -> RLJobObject:
    observed = running(phase=record(PhaseName.FAILED, reason=reason))
    return went_on(job, decide(job, observed, NOW))


# -- start and progress ------------------------------------------------------------------------------------------------


def test_a_new_job_runs() -> None:
    decision = decide(rljob(), Observed(), NOW)
    assert decision.active
    assert decision.desired is DesiredState.RUNNING
    assert decision.suspension == Suspension()
    assert decision.status.phase is JobPhase.PENDING
    assert decision.status.start_time == rfc3339(NOW)


def test_status_tells_what_etcd_tells() -> None:
    progress = Progress(reward=0.5, eval_accuracy=0.75, phase_seconds={"rollout": 3.0}, checkpoint_iteration=2)
    status = decide(rljob(), running(progress=progress), NOW).status
    assert (status.phase, status.iteration, status.weight_version, status.epoch) == (JobPhase.ROLLOUT, 2, 2, 7)
    assert (status.reward, status.accuracy) == (0.5, 0.75)
    assert status.phase_seconds.rollout == 3.0
    assert status.checkpoint is not None
    assert status.checkpoint.iteration == 2
    assert status.hybrid_ready == "1/1"
    assert condition(status, ConditionType.READY).status == "True"
    assert condition(status, ConditionType.DEGRADED).status == "False"


def test_status_tells_which_guarantees_of_the_sandbox_hold() -> None:
    progress = Progress(sandbox={"network": True, "tasks": False, "files": True})
    sandbox = decide(rljob(), running(progress=progress), NOW).status.sandbox
    assert sandbox is not None
    assert (sandbox.held, sandbox.lacking) == (("network", "files"), ("tasks",))


def test_without_etcd_the_last_known_status_stands() -> None:
    job = rljob()
    job = went_on(job, decide(job, running(progress=Progress(reward=0.5)), NOW))
    status = decide(job, running(phase=None, etcd_error="connection refused"), NOW + 60).status
    assert (status.phase, status.iteration, status.reward) == (JobPhase.ROLLOUT, 2, 0.5)
    assert condition(status, ConditionType.DEGRADED).reason == "EtcdUnreachable"


def test_nothing_new_changes_nothing() -> None:
    job = rljob()
    job = went_on(job, decide(job, running(), NOW))
    again = decide(job, running(), NOW + 3600)
    assert again.status == job.status
    assert again.announcements == ()


# -- suspend and resume ------------------------------------------------------------------------------------------------


def suspended(labels: dict[str, str] | None = None) -> RLJobObject:
    job = rljob(labels, runPolicy={"suspend": True})
    return went_on(job, decide(rljob(labels), running(), NOW))


def test_suspending_drains_before_the_pods_go() -> None:
    decision = decide(suspended(), running(), NOW)
    assert decision.desired is DesiredState.SUSPENDED
    assert decision.suspension == Suspension()
    assert condition(decision.status, ConditionType.SUSPENDED).reason == "Draining"


def test_once_at_rest_the_hybrid_pods_go_and_the_orchestrator_stays() -> None:
    decision = decide(suspended(), running(phase=record(PhaseName.SUSPENDED)), NOW)
    assert decision.suspension == Suspension(hybrid=True, orchestrator=False)
    assert decision.status.phase is JobPhase.SUSPENDED
    assert condition(decision.status, ConditionType.SUSPENDED).status == "True"


def test_a_drain_that_does_not_end_is_given_up() -> None:
    job = suspended()
    first = decide(job, running(), NOW)
    job = went_on(job, first)
    assert first.look_again == NOW + DRAIN_SECONDS
    assert not decide(job, running(), NOW + DRAIN_SECONDS - 1).suspension.hybrid
    assert decide(job, running(), NOW + DRAIN_SECONDS).suspension.hybrid


def test_a_job_that_is_created_suspended_has_no_pods_at_all() -> None:
    decision = decide(rljob(runPolicy={"suspend": True}), Observed(), NOW)
    assert decision.suspension == Suspension(hybrid=True, orchestrator=True)
    assert decision.status.phase is JobPhase.SUSPENDED
    assert decision.status.start_time is None


def test_losing_etcd_never_suspends_the_orchestrator_of_a_job_that_has_begun() -> None:
    job = suspended()
    job = went_on(job, decide(job, running(phase=record(PhaseName.SUSPENDED)), NOW))
    assert not decide(job, running(phase=None), NOW).suspension.orchestrator


def test_resuming_gives_the_pods_back_and_is_told() -> None:
    job = suspended()
    resting = decide(job, running(phase=record(PhaseName.SUSPENDED)), NOW)
    resumed = rljob().model_copy(update={"status": resting.status})
    at_rest = running(phase=record(PhaseName.SUSPENDED), workloads=workloads(suspended=True), pods=())
    decision = decide(resumed, at_rest, NOW)
    assert decision.desired is DesiredState.RUNNING
    assert decision.suspension == Suspension()
    started = decide(went_on(resumed, decision), running(phase=record(PhaseName.START, world=2, reason="resumed")), NOW)
    assert "Resumed" in [told.reason for told in started.announcements]
    assert started.status.restarts == 0


def test_a_queued_job_waits_until_the_queue_lets_its_pods_start() -> None:
    waiting = decide(rljob(QUEUE), Observed(), NOW)
    assert waiting.suspension == Suspension(hybrid=True, orchestrator=True)
    assert waiting.desired is DesiredState.SUSPENDED
    assert condition(waiting.status, ConditionType.SUSPENDED).reason == "Queued"
    admitted = decide(rljob(QUEUE), Observed(workloads=workloads(suspended=False)), NOW)
    assert admitted.suspension == Suspension()
    assert admitted.desired is DesiredState.RUNNING


def test_a_queue_that_takes_the_pods_back_is_not_overruled() -> None:
    job = went_on(rljob(QUEUE), decide(rljob(QUEUE), running(), NOW))
    evicted = decide(job, running(workloads=workloads(suspended=True)), NOW)
    assert evicted.suspension == Suspension(hybrid=True, orchestrator=False)


def test_a_failed_queued_job_gives_its_quota_back_and_is_not_admitted_again() -> None:
    failed = running(phase=record(PhaseName.FAILED, reason="the loss is NaN"))
    assert decide(rljob(QUEUE), failed, NOW).withdrawn
    assert not decide(rljob(), failed, NOW).withdrawn


def test_suspending_a_queued_job_gives_its_quota_back() -> None:
    assert decide(suspended(QUEUE), running(phase=record(PhaseName.SUSPENDED)), NOW).withdrawn
    assert not decide(suspended(QUEUE), running(), NOW).withdrawn


# -- restarts ----------------------------------------------------------------------------------------------------------


def test_a_recovery_is_a_restart_and_is_told() -> None:
    job = went_on(rljob(), decide(rljob(), running(), NOW))
    decision = decide(job, running(phase=record(PhaseName.RECOVER, world=2)), NOW)
    assert decision.status.restarts == 1
    assert decision.status.phase is JobPhase.RECOVERING
    assert "Restarted" in [told.reason for told in decision.announcements]


def test_the_same_recovery_counts_once_whoever_looks() -> None:
    job, observed = rljob(), running(phase=record(PhaseName.ROLLOUT, world=3))
    for _ in range(3):
        job = went_on(job, decide(job, observed, NOW))
    assert job.status.restarts == 2


@pytest.mark.parametrize(
    "excuse",
    [
        {"disruption": "Deleted"},
        {"pods": (hybrid_pod(disruption="EvictionByEvictionAPI"),)},
        {"workloads": workloads(suspended=True)},
    ],
)
def test_disruptions_do_not_count_as_restarts(excuse: dict[str, Any]) -> None:
    job = went_on(rljob(), decide(rljob(), running(), NOW))
    status = decide(job, running(phase=record(PhaseName.RECOVER, world=2), **excuse), NOW).status
    assert (status.restarts, status.disruptions) == (0, 1)


def test_a_disruption_that_an_operator_saw_is_known_to_the_next_one() -> None:
    taken = running(pods=(hybrid_pod(disruption="EvictionByEvictionAPI", ready=False),))
    job = went_on(rljob(), decide(rljob(), taken, NOW))
    gone = running(pods=(), phase=record(PhaseName.RECOVER, world=2))
    job = went_on(job, decide(job, gone, NOW))
    assert (job.status.restarts, job.status.disruptions) == (0, 1)
    job = went_on(job, decide(job, running(pods=(), phase=record(PhaseName.RECOVER, world=3)), NOW))
    assert (job.status.restarts, job.status.disruptions) == (1, 1)


def test_a_disruption_excuses_one_new_start_and_not_the_next() -> None:
    job = rljob()
    job = went_on(job, decide(job, running(phase=record(PhaseName.RECOVER, world=2), disruption="Evicted"), NOW))
    job = went_on(job, decide(job, running(phase=record(PhaseName.RECOVER, world=3)), NOW))
    assert (job.status.restarts, job.status.disruptions) == (1, 1)


def test_a_container_that_crashes_before_the_job_gets_going_uses_the_budget_up() -> None:
    job = rljob(runPolicy={"maxRestarts": 2})
    for crashes, failed in ((2, False), (3, True)):
        observed = Observed(pods=(hybrid_pod(0, Container("trainer", restarts=crashes)),), workloads=workloads())
        decision = decide(job, observed, NOW)
        assert decision.status.restarts == crashes
        assert (decision.status.phase is JobPhase.FAILED) is failed
    assert condition(decision.status, ConditionType.FAILED).reason == "RestartsExhausted"


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12))
def test_the_ledger_books_every_new_start_once_and_never_forgets(steps: list[tuple[int, bool]]) -> None:
    job, world = rljob(runPolicy={"maxRestarts": 1000}), 1
    for more, disrupted in steps:
        world += more
        before = job.status
        observed = running(phase=record(PhaseName.ROLLOUT, world=world), disruption="Evicted" if disrupted else None)
        job = went_on(job, decide(job, observed, NOW))
        assert job.status.restarts + job.status.disruptions == world - 1
        assert job.status.restarts >= before.restarts
        assert job.status.disruptions >= before.disruptions
        assert (job.status.restarts == before.restarts) or not disrupted


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_job_is_complete_when_its_pods_have_written_the_final_weights() -> None:
    finished = record(PhaseName.SUCCEEDED)
    writing = decide(rljob(), running(phase=finished), NOW)
    assert writing.active
    assert writing.look_again == finished.started + FINISH_SECONDS
    done = decide(rljob(), running(phase=finished, workloads=workloads(complete=True)), NOW)
    assert done.status.phase is JobPhase.SUCCEEDED
    assert condition(done.status, ConditionType.COMPLETE).status == "True"
    assert done.status.completion_time == rfc3339(NOW)
    overdue = decide(rljob(), running(phase=finished), finished.started + FINISH_SECONDS)
    assert overdue.status.phase is JobPhase.SUCCEEDED


def test_a_failed_job_says_why_and_lets_go_of_its_pods() -> None:
    decision = decide(rljob(), running(phase=record(PhaseName.FAILED, reason="the loss is NaN")), NOW)
    assert not decision.active
    assert decision.desired is DesiredState.STOPPED
    assert decision.suspension == Suspension(hybrid=True, orchestrator=True)
    assert condition(decision.status, ConditionType.FAILED).message == "the loss is NaN"


MISTAKE = "spec.data.prompts[0].path: /data/none.jsonl does not exist"


def orchestrator_that_found(mistake: str, **fields: Any) -> Pod:
    given = {"waiting": "CrashLoopBackOff", "restarts": 1, "ended": "Error", "exit_code": 2, "last_words": mistake}
    return Pod("sums-orchestrator-x", ORCHESTRATOR, containers=(Container("orchestrator", **given | fields),))


@pytest.mark.parametrize("fields", [{}, {"waiting": None, "restarts": 0, "ended_at": NOW}])
def test_what_the_orchestrator_finds_wrong_at_the_start_fails_the_job_at_once(fields: dict[str, Any]) -> None:
    job = rljob()
    decision = decide(job, Observed(pods=(orchestrator_that_found(MISTAKE, **fields),), workloads=workloads()), NOW)
    failed = condition(decision.status, ConditionType.FAILED)
    assert (decision.status.phase, failed.reason, failed.message) == (JobPhase.FAILED, "InvalidData", MISTAKE)
    assert decision.suspension == Suspension(hybrid=True, orchestrator=True)


@pytest.mark.parametrize("fields", [{"exit_code": 1}, {"last_words": ""}])
def test_an_end_for_another_reason_is_no_mistake_of_the_users(fields: dict[str, Any]) -> None:
    observed = Observed(pods=(orchestrator_that_found(MISTAKE, **fields),), workloads=workloads())
    assert decide(rljob(), observed, NOW).active


def test_what_an_orchestrator_finds_wrong_in_the_middle_of_a_job_is_told_and_may_be_mended() -> None:
    decision = decide(rljob(), running(pods=(hybrid_pod(), orchestrator_that_found(MISTAKE))), NOW)
    degraded = condition(decision.status, ConditionType.DEGRADED)
    assert decision.active
    assert degraded.reason == "InvalidData"
    assert MISTAKE in degraded.message


def test_a_job_fails_at_its_deadline_and_not_before() -> None:
    job = rljob(runPolicy={"activeDeadlineSeconds": 100})
    job = went_on(job, decide(job, running(), NOW))
    assert decide(job, running(), NOW + 99).look_again == NOW + 100
    late = decide(job, running(), NOW + 100)
    assert condition(late.status, ConditionType.FAILED).reason == "DeadlineExceeded"


@given(
    st.sampled_from([None, *PhaseName]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**7),
)
def test_what_has_ended_stays_ended_whatever_is_observed(
    phase: PhaseName | None, suspend: bool, children: bool, seconds: int
) -> None:
    job = ended(rljob(runPolicy={"suspend": suspend}))
    observed = replace(running() if children else Observed(), phase=None if phase is None else record(phase, world=9))
    decision = decide(job, observed, NOW + seconds)
    assert not decision.active
    assert not decision.withdrawn
    assert decision.status.phase is JobPhase.FAILED
    assert decision.status.completion_time == job.status.completion_time
    assert condition(decision.status, ConditionType.FAILED).status == "True"


def test_time_to_live_counts_from_the_end() -> None:
    job = ended(rljob(runPolicy={"ttlSecondsAfterFinished": 60}))
    before = decide(job, Observed(), NOW + 59)
    assert not before.delete
    assert before.look_again == NOW + 60
    assert decide(job, Observed(), NOW + 60).delete
    assert not decide(ended(rljob()), Observed(), NOW + 10**9).delete


def test_a_running_job_is_never_deleted() -> None:
    assert not decide(rljob(runPolicy={"ttlSecondsAfterFinished": 0}), running(), NOW + 10**9).delete


def test_pods_that_outstay_success_are_sent_away() -> None:
    job = went_on(rljob(), decide(rljob(), running(phase=record(PhaseName.SUCCEEDED, started=NOW - 601)), NOW))
    assert job.status.phase is JobPhase.SUCCEEDED
    assert decide(job, running(), NOW + 1).suspension == Suspension()
    assert decide(job, running(), NOW + FINISH_SECONDS).suspension == Suspension(hybrid=True, orchestrator=True)
