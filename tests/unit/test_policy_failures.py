# SPDX-License-Identifier: Apache-2.0
"""What goes wrong becomes a condition with a reason, and a sentence that says what to do."""

from dataclasses import replace
from typing import Any

import pytest
from operator_fixture import NOW, hybrid_pod, rljob, running, workloads

from tandem_api.messages.phases import Progress
from tandem_api.status import ConditionType
from tandem_operator.observed import Container, Observed, Pod, Warning, pod
from tandem_operator.plan.platform import Gang
from tandem_operator.policy import decide

POD = "sums-hybrid-0"


def pending(*containers: Container, **fields: Any) -> Observed:
    stuck = hybrid_pod(0, *containers, **({"phase": "Pending", "ready": False} | fields))
    return Observed(pods=(stuck,), workloads=workloads())


LOST = [POD, "gpu-7", "when the node is back", "kubectl delete node gpu-7", "out-of-service"]
CASES = [
    (
        pending(
            Container(
                "engine",
                waiting="ImagePullBackOff",
                waiting_message='Back-off pulling image "e": ErrImagePull: no such image',
            )
        ),
        "ImagePullFailed",
        [POD, "engine", "no such image", "pull secrets"],
    ),
    (
        pending(scheduled=False, unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        "Unschedulable",
        [POD, "Insufficient nvidia.com/gpu"],
    ),
    (
        pending(scheduled=False, unschedulable='persistentvolumeclaim "models" not found'),
        "MissingVolume",
        [POD, "models", "create it"],
    ),
    (
        replace(
            pending(scheduled=False, unschedulable="pod has unbound immediate PersistentVolumeClaims."),
            warnings=(Warning("sums-checkpoints", "ProvisioningFailed", 'storageclass "nope" not found', NOW),),
        ),
        "MissingVolume",
        [POD, "sums-checkpoints", 'storageclass "nope" not found'],
    ),
    (
        Observed(
            pods=(hybrid_pod(0, phase="Pending", ready=False),),
            warnings=(Warning(POD, "FailedMount", 'configmap "prompts" not found.', NOW),),
        ),
        "MissingVolume",
        [POD, "prompts"],
    ),
    (
        pending(Container("trainer", waiting="CrashLoopBackOff", restarts=4, ended="Error", exit_code=1)),
        "CrashLoop",
        [POD, "exit code 1", "5 times", f"kubectl logs {POD} -c trainer --previous"],
    ),
    (
        pending(Container("trainer", waiting="CrashLoopBackOff", restarts=1, ended="OOMKilled", exit_code=137)),
        "OutOfMemory",
        ["trainer", "memory", "raise the limit"],
    ),
    (
        pending(Container("engine", waiting="CreateContainerConfigError", waiting_message='secret "x" not found')),
        "ContainerRefused",
        ["engine", 'secret "x" not found'],
    ),
    (
        pending(
            Container(
                "trainer",
                waiting="CrashLoopBackOff",
                restarts=2,
                ended="StartError",
                exit_code=128,
                last_words='exec: "/no/such/program": no such file or directory',
            )
        ),
        "ContainerRefused",
        ["trainer", "cannot start", "/no/such/program"],
    ),
    (
        Observed(
            workloads=workloads(active=0),
            warnings=(Warning("sums-hybrid", "FailedCreate", "exceeded quota: gpus", NOW),),
        ),
        "PodsRefused",
        ["sums-hybrid", "exceeded quota: gpus"],
    ),
    (running(pods=(hybrid_pod(ready=False, unheard=True, node="gpu-7"),)), "NodeLost", LOST),
    (running(pods=(hybrid_pod(unheard=True, deleting=True, gone_by=NOW + 30, node="gpu-7"),)), "NodeLost", LOST),
    (running(pods=(hybrid_pod(deleting=True, gone_by=NOW - 60, node="gpu-7"),)), "NodeLost", LOST),
    (running(etcd_error="connection refused"), "EtcdUnreachable", ["connection refused", "keeps its work"]),
    (running(progress=Progress(error="nothing can be trained on")), "OrchestratorProblem", ["nothing can be"]),
    (running(progress=Progress(buffer_full=True)), "BufferFull", ["the job waits for room"]),
    (Observed(refusal="Service is invalid"), "ObjectsRefused", ["Service is invalid"]),
]


@pytest.mark.parametrize(("observed", "reason", "words"), CASES, ids=[case[1] for case in CASES])
def test_each_trouble_is_a_condition_and_an_event(observed: Observed, reason: str, words: list[str]) -> None:
    decision = decide(rljob(), observed, NOW)
    (degraded,) = [found for found in decision.status.conditions if found.type is ConditionType.DEGRADED]
    assert (degraded.status, degraded.reason) == ("True", reason)
    for word in words:
        assert word in degraded.message
    told = [announcement for announcement in decision.announcements if announcement.reason == reason]
    assert [announcement.warning for announcement in told] == [True]


def test_an_event_is_told_once_while_the_trouble_lasts() -> None:
    observed = CASES[0][0]
    job = rljob()
    job = job.model_copy(update={"status": decide(job, observed, NOW).status})
    assert decide(job, observed, NOW + 60).announcements == ()


def test_pulling_and_waiting_to_pull_again_are_told_alike() -> None:
    failing = pending(Container("engine", waiting="ErrImagePull", waiting_message="no such image"))
    waiting = CASES[0][0]
    assert decide(rljob(), failing, NOW).status == decide(rljob(), waiting, NOW).status


def test_trouble_with_placement_shows_in_the_scheduled_condition() -> None:
    status = decide(rljob(), CASES[1][0], NOW).status
    (scheduled,) = [found for found in status.conditions if found.type is ConditionType.SCHEDULED]
    assert (scheduled.status, scheduled.reason) == ("False", "Unschedulable")


def test_an_out_of_memory_kill_is_told_for_a_while_after_the_container_runs_again() -> None:
    def degraded(seconds: float) -> str:
        container = Container("trainer", ready=True, running=True, restarts=1, ended="OOMKilled", ended_at=NOW)
        status = decide(rljob(), running(pods=(hybrid_pod(0, container),)), NOW + seconds).status
        return next(found.status for found in status.conditions if found.type is ConditionType.DEGRADED)

    assert degraded(10) == "True"
    assert degraded(301) == "False"


def test_waiting_for_a_volume_to_be_made_is_no_trouble_unless_it_takes_long() -> None:
    message = "pod has unbound immediate PersistentVolumeClaims."
    waiting = pending(scheduled=False, unschedulable=message, unschedulable_since=NOW)
    soon, late = decide(rljob(), waiting, NOW + 1), decide(rljob(), waiting, NOW + 16)
    assert not any(told.warning for told in soon.announcements)
    assert soon.look_again == NOW + 15
    assert "Unschedulable" in [told.reason for told in late.announcements]


@pytest.mark.parametrize(
    ("container", "told"),
    [
        (Container("trainer", restarts=0, ended="Error", exit_code=1), "False"),
        (Container("trainer", running=True, restarts=1, ended="Error", ended_at=NOW, exit_code=1), "False"),
        (Container("trainer", restarts=1, ended="Error", exit_code=1), "True"),
        (Container("trainer", running=True, restarts=2, ended="Error", ended_at=NOW - 5, exit_code=1), "True"),
        (Container("trainer", running=True, restarts=2, ended="Error", ended_at=NOW - 90, exit_code=1), "False"),
    ],
    ids=["first end", "first restart", "second end", "second restart", "long ago"],
)
def test_a_crash_loop_is_told_from_the_second_end_until_the_container_has_run_for_a_while(
    container: Container, told: str
) -> None:
    status = decide(rljob(), running(pods=(hybrid_pod(0, container),)), NOW).status
    assert next(found.status for found in status.conditions if found.type is ConditionType.DEGRADED) == told


def test_pods_on_their_way_out_are_no_trouble() -> None:
    leaving = pending(Container("engine", waiting="ImagePullBackOff"), deleting=True)
    status = decide(rljob(), leaving, NOW).status
    assert next(found.status for found in status.conditions if found.type is ConditionType.DEGRADED) == "False"


@pytest.mark.parametrize(
    ("replicas", "gang", "reason", "words"),
    [
        (1, None, "Placed", "is placed"),
        (2, None, "PlacedOneByOne", "no gang-scheduling API"),
        (2, Gang.KUBERNETES, "Placed", "together by scheduling.k8s.io/v1alpha2"),
        (2, Gang.VOLCANO, "Placed", "together by scheduling.volcano.sh/v1beta1"),
    ],
)
def test_a_job_says_what_placed_its_pods_together_or_that_nothing_did(
    replicas: int, gang: Gang | None, reason: str, words: str
) -> None:
    pods = tuple(hybrid_pod(index) for index in range(replicas))
    status = decide(rljob(hybrid={"replicas": replicas}), running(pods=pods), NOW, gang).status
    (scheduled,) = [found for found in status.conditions if found.type is ConditionType.SCHEDULED]
    assert (scheduled.status, scheduled.reason) == ("True", reason)
    assert words in scheduled.message


def test_a_lost_node_shows_in_the_scheduled_condition_once_its_pod_is_to_go() -> None:
    def scheduled(**fields: Any) -> tuple[str, str]:
        status = decide(rljob(), running(pods=(hybrid_pod(ready=False, unheard=True, node="n", **fields),)), NOW).status
        (found,) = [found for found in status.conditions if found.type is ConditionType.SCHEDULED]
        return found.status, found.reason

    assert scheduled() == ("True", "Placed")
    assert scheduled(deleting=True, gone_by=NOW + 30) == ("False", "NodeLost")


@pytest.mark.parametrize(
    "ending",
    [{"gone_by": NOW - 59}, {"gone_by": NOW - 60, "phase": "Failed"}, {"gone_by": NOW - 60, "node": ""}],
    ids=["in time", "has ended", "was never placed"],
)
def test_a_pod_that_ends_as_it_should_is_on_no_lost_node(ending: dict[str, Any]) -> None:
    leaving = hybrid_pod(**{"deleting": True, "ready": False, "node": "gpu-7"} | ending)
    decision = decide(rljob(), running(pods=(leaving,)), NOW)
    assert next(one.status for one in decision.status.conditions if one.type is ConditionType.DEGRADED) == "False"


def test_a_pod_that_is_to_go_is_looked_at_again_when_it_should_long_be_gone() -> None:
    leaving = hybrid_pod(deleting=True, gone_by=NOW + 30, node="gpu-7")
    assert decide(rljob(), running(pods=(leaving,)), NOW).look_again == NOW + 90


CONDITIONS = {"PodScheduled": "True", "ContainersReady": "True", "Ready": "False"}


@pytest.mark.parametrize(
    ("conditions", "gates", "unheard"),
    [
        (CONDITIONS, [], True),
        (CONDITIONS | {"ContainersReady": "False"}, [], False),
        (CONDITIONS | {"Ready": "True"}, [], False),
        (CONDITIONS, [{"conditionType": "example.com/in-the-load-balancer"}], False),
        ({}, [], False),
    ],
    ids=["marked by the controller of nodes", "a container is not ready", "ready", "a gate is shut", "new"],
)
def test_a_pod_that_is_not_ready_though_its_containers_are_is_on_a_node_that_is_not_heard_of(
    conditions: dict[str, str], gates: list[dict[str, str]], unheard: bool
) -> None:
    raw = {
        "metadata": {"name": POD, "namespace": "team"},
        "spec": {"nodeName": "gpu-7", "readinessGates": gates},
        "status": {"conditions": [{"type": kind, "status": status} for kind, status in conditions.items()]},
    }
    found = pod(raw)
    assert (found.node, found.unheard) == ("gpu-7", unheard)


KILLED_AND_PREEMPTED = {
    "metadata": {
        "name": POD,
        "namespace": "team",
        "uid": "u",
        "labels": {
            "app.kubernetes.io/component": "hybrid",
            "batch.kubernetes.io/job-completion-index": "3",
        },
    },
    "status": {
        "phase": "Running",
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "False"},
            {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"},
        ],
        "initContainerStatuses": [
            {"name": "engine", "ready": True, "restartCount": 0, "state": {"running": {}}},
        ],
        "containerStatuses": [
            {
                "name": "trainer",
                "ready": False,
                "restartCount": 2,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                "lastState": {
                    "terminated": {
                        "reason": "OOMKilled",
                        "exitCode": 137,
                        "finishedAt": "2027-01-15T08:00:00Z",
                        "message": "too much\n",
                    }
                },
            }
        ],
    },
}


def test_a_pod_is_read_as_kubernetes_writes_it() -> None:
    assert pod(KILLED_AND_PREEMPTED) == Pod(
        name=POD,
        component="hybrid",
        uid="u",
        index=3,
        phase="Running",
        ready=False,
        scheduled=True,
        disruption="PreemptionByScheduler",
        containers=(
            Container("engine", ready=True, running=True),
            Container(
                "trainer",
                restarts=2,
                waiting="CrashLoopBackOff",
                waiting_message="back-off",
                ended="OOMKilled",
                ended_at=NOW,
                exit_code=137,
                last_words="too much",
            ),
        ),
    )
