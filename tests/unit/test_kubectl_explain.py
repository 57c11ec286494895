# SPDX-License-Identifier: Apache-2.0
"""kubectl tandem explain names the most fundamental thing in a job's way, with the Event behind it."""

from typing import Any

import pytest
from operator_fixture import NOW, hybrid_pod, manifest, rljob, running

from tandem_cli.cluster.explain import explain, first_obstacle
from tandem_cli.cluster.objects import Event, Job, Pod
from tandem_operator.observed import Container, Observed
from tandem_operator.observed import Pod as ObservedPod
from tandem_operator.policy import decide
from tandem_operator.times import rfc3339

POD = Pod("sums-hybrid-0-x7k2p", "hybrid", 0, "Pending", "", NOW - 300, ())


def job(conditions: list[dict[str, Any]] | None = None, suspend: bool = False, age: float = 600, **status: Any) -> Job:
    raw = manifest(runPolicy={"suspend": suspend})
    raw["metadata"]["creationTimestamp"] = rfc3339(NOW - age)
    given = {"phase": "Rollout", "iteration": 1, "observedGeneration": 1, "conditions": conditions or []}
    return Job.of({**raw, "status": given | status})


def condition(kind: str, status: str, reason: str, message: str = "", since: float = 300) -> dict[str, Any]:
    time = rfc3339(NOW - since)
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": time}


def event(name: str, reason: str, message: str, seen: float, count: int = 1) -> Event:
    return Event("Pod", name, reason, message, count, NOW - seen)


UNSCHEDULABLE = condition("Scheduled", "False", "Unschedulable", f"Pod {POD.name} cannot be placed: 0/1 nodes fit.")
DEGRADED = condition("Degraded", "True", "ImagePullFailed", "Container engine cannot pull its image.")
CRASHING = Container("trainer", waiting="CrashLoopBackOff", restarts=3, exit_code=1)
FINE = [condition("Scheduled", "True", "Placed"), condition("Progressing", "True", "Rollout")]


def judged(observed: Observed) -> Job:
    """A job with the status that the operator itself would write."""
    before = rljob()
    status = decide(before, observed, NOW).status
    raw = manifest()
    raw["metadata"]["creationTimestamp"] = rfc3339(NOW - 600)
    return Job.of({**raw, "status": status.model_dump(mode="json", by_alias=True)})


def test_a_job_that_goes_on_is_said_to_with_what_it_does() -> None:
    found = explain(job(FINE), [POD], [], NOW)
    assert found.going
    assert found.sentence.startswith(
        "sums is progressing: it generates and scores responses (Rollout, iteration 1 of 4"
    )


def test_placement_comes_before_what_follows_from_it() -> None:
    obstacle = first_obstacle(job([DEGRADED, UNSCHEDULABLE, condition("Ready", "False", "PodsNotReady")]), NOW)
    assert obstacle is not None
    assert obstacle.reason == "Unschedulable"


def test_the_newest_warning_about_the_named_object_stands_behind_it() -> None:
    warnings = [
        event(POD.name, "FailedScheduling", "0/1 nodes fit.", 40, count=3),
        event(POD.name, "FailedScheduling", "old", 400),
        event("sums-orchestrator", "BackOff", "something newer of another object", 1),
        event("other-hybrid-0", "FailedScheduling", "of another job", 1),
    ]
    found = explain(job([UNSCHEDULABLE]), [POD], warnings, NOW)
    assert not found.going
    # What the condition says already is not said twice.
    assert f"(Event FailedScheduling of Pod {POD.name}, 3 times, last 40s ago)" in found.sentence
    assert found.sentence.endswith("or ask for less in the job.")


def test_an_events_message_is_told_where_it_adds_something() -> None:
    warnings = [event(POD.name, "Failed", "manifest unknown", 5)]
    assert "last 5s ago: manifest unknown)" in explain(job([DEGRADED]), [POD], warnings, NOW).sentence


def test_a_suspended_job_is_told_how_to_go_on_whatever_its_pods_warned_of() -> None:
    found = explain(job([UNSCHEDULABLE], suspend=True), [POD], [event(POD.name, "Killing", "gone", 1)], NOW)
    assert not found.going
    assert found.sentence == "sums is not progressing: it is suspended; kubectl tandem resume sums lets it go on."


def test_draining_and_waiting_for_a_queue_are_told_apart_from_suspended() -> None:
    draining = condition("Suspended", "Unknown", "Draining", "Work is being drained.")
    queued = condition("Suspended", "True", "Queued", "The queue has not admitted the job yet.")
    assert "being suspended: work is being drained" in explain(job([draining], suspend=True), [], [], NOW).sentence
    assert "queue" in explain(job([queued]), [], [], NOW).sentence


def test_a_job_that_no_operator_looks_at_is_not_progressing_once_that_takes_long() -> None:
    unseen = {"observedGeneration": 0, "phase": "Pending"}
    assert explain(job(age=5, **unseen), [], [], NOW).going
    found = explain(job(age=600, **unseen), [], [], NOW)
    assert not found.going
    assert "no operator has looked at it for 10m" in found.sentence


def test_a_start_counts_as_progress_while_it_takes_no_longer_than_starts_do() -> None:
    waiting = condition("Scheduled", "False", "Pending", "0 of 1 hybrid pods are placed.", since=10)
    assert explain(job([waiting], phase="Pending"), [], [], NOW).going
    late = waiting | {"lastTransitionTime": rfc3339(NOW - 300)}
    assert not explain(job([late], phase="Pending"), [], [], NOW).going
    loading = condition("Ready", "False", "PodsNotReady", "0 of 1 hybrid pods are ready.", since=900)
    assert explain(job([loading], phase="Starting"), [], [], NOW).going


def test_the_end_of_a_job_outweighs_all_else() -> None:
    failed = condition("Failed", "True", "RestartsExhausted", "It failed more often than allowed.")
    found = explain(job([failed, condition("Ready", "False", "Finished")]), [POD], [], NOW)
    assert not found.going
    assert "it has failed: It failed more often than allowed. Its pods' logs say why" in found.sentence
    done = condition("Complete", "True", "IterationsCompleted", "All 4 iterations are done.")
    assert explain(job([done, condition("Ready", "False", "Finished")]), [], [], NOW).going


def test_trouble_that_is_over_is_told_of_a_job_that_goes_on() -> None:
    killed = condition("Degraded", "True", "OutOfMemory", "Container trainer was killed.")
    ready, unready = condition("Ready", "True", "AllPodsReady"), condition("Ready", "False", "PodsNotReady")
    again = explain(job([killed, ready]), [POD], [], NOW)
    assert again.going
    assert again.sentence.endswith("Lately: Container trainer was killed.")
    assert not explain(job([killed, unready]), [POD], [], NOW).going


def test_a_deletion_that_hangs_names_what_holds_it() -> None:
    raw = manifest()
    raw["metadata"] |= {"creationTimestamp": rfc3339(NOW), "deletionTimestamp": rfc3339(NOW), "finalizers": ["x/y"]}
    assert "finalizers hold it: x/y" in explain(Job.of(raw), [], [], NOW).sentence


@pytest.mark.parametrize(
    ("observed", "going"),
    [
        (running(), True),
        (running(pods=(hybrid_pod(unschedulable="0/1 nodes", scheduled=False, ready=False, phase="Pending"),)), False),
        (running(pods=(hybrid_pod(0, Container("engine", waiting="ImagePullBackOff")),)), False),
        (running(pods=(hybrid_pod(0, CRASHING, ready=False),)), False),
        (running(etcd_error="connection refused"), False),
        (running(refusal="quota"), False),
        (running(pods=(hybrid_pod(0, Container("engine", ended="OOMKilled", ended_at=NOW - 9)),)), True),
        (Observed(), True),
    ],
)
def test_what_the_operator_writes_is_read_as_it_is_meant(observed: Observed, going: bool) -> None:
    assert explain(judged(observed), [], [], NOW).going is going


def test_the_operators_own_pods_are_enough_to_find_the_event() -> None:
    observed = running(pods=(ObservedPod(POD.name, "hybrid", unschedulable="Insufficient cpu.", scheduled=False),))
    warnings = [event(POD.name, "FailedScheduling", "Insufficient cpu.", 12)]
    assert "Event FailedScheduling" in explain(judged(observed), [POD], warnings, NOW).sentence
