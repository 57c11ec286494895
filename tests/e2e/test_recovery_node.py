# SPDX-License-Identifier: Apache-2.0
"""The node of a job's hybrid pod loses its power and never comes back. That takes a node of tests/cluster."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from broken_job import PATIENCE, BrokenJob
from broken_run import SMALL, BrokenRun
from kubectl import CLUSTER, ENVIRONMENT, KUBECONFIG, ROOT, kubectl, objects, one
from running import manifest
from waiting import DEADLINE, until

from tandem_api.labels import COMPONENT_LABEL, HYBRID, JOB_LABEL
from tandem_api.messages.phases import PhaseName
from tandem_cli.chaos.plan import Component, Fault, Kind

JOB = "bereft"
NODE, SECOND_NODE = "node", "node-2"
ITERATIONS = 16
SAVED = 3
"""By this iteration there is a checkpoint to go back to."""
MINUTES = 20
HOSTNAME = "kubernetes.io/hostname"
AWAY: dict[str, Any] = {
    "affinity": {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 100,
                    "preference": {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [SECOND_NODE]}]},
                }
            ]
        }
    },
}
CHANGES: dict[str, Any] = {
    **SMALL,
    "metadata.name": JOB,
    "spec.iterations": ITERATIONS,
    # So long may a pod be away before the job fails.
    "spec.schedule": {"phaseDeadlines": SMALL["spec.schedule"]["phaseDeadlines"] | {"start": "15m"}},
    "spec.hybrid": {"template": {"spec": AWAY}},
    "spec.orchestrator": {
        "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
        "template": {"spec": {"nodeSelector": {HOSTNAME: NODE}}},
    },
}
pytestmark = [pytest.mark.recovery, pytest.mark.timeout((MINUTES + 15) * 60)]
FAULT = Fault(Kind.KILL, Component.POD, PhaseName.TRAIN)
"""What the loss of its node is to the job."""
HYBRID_PODS = f"{JOB_LABEL}={JOB},{COMPONENT_LABEL}={HYBRID}"


@dataclass
class LostNode:
    """A job that has lost a node, and what a user was told of that: of its pod, and of its pod once it was deleted."""

    run: BrokenRun
    told_unheard: str
    told_deleted: str


def cluster(command: str) -> None:
    subprocess.run([sys.executable, ROOT / "tests" / "cluster" / "cluster.py", command], check=True)


@pytest.fixture(scope="module")
def second_node(installed: None) -> Iterator[str]:
    """A node that can be lost. It joins when everything that must not be lost has its place on the first."""
    assert Path(KUBECONFIG) == CLUSTER / "kubeconfig", "only a node of tests/cluster can be lost"
    cluster("join")
    yield SECOND_NODE
    cluster("lose")
    kubectl("delete", "node", SECOND_NODE, "--ignore-not-found")


@pytest.fixture(scope="module")
def lost(second_node: str, namespace: str, tmp_path_factory: pytest.TempPathFactory) -> LostNode:
    """What is left once the job is Complete."""
    directory = tmp_path_factory.mktemp("node")
    file = manifest(directory / "job.yaml", CHANGES)
    kubectl("apply", "-n", namespace, "-f", str(file))
    run = BrokenRun(file, directory / "out", ITERATIONS, "cluster")
    job = BrokenJob(JOB, namespace, run)
    until(lambda: iteration(namespace) >= SAVED, MINUTES * 60.0, f"iteration {SAVED}")
    (pod,) = objects("pods", namespace, "-l", HYBRID_PODS)
    assert pod["spec"]["nodeName"] == second_node
    with job.watched(), ThreadPoolExecutor() as threads:
        recovering = threads.submit(job.done_to_it, FAULT, lambda: cluster("lose"))
        unheard, deleted = told_of(pod["metadata"]["name"], namespace)
        kubectl("delete", "node", second_node)
        recovery = recovering.result()
        job.ended(MINUTES * 60.0)
    job.collect()
    run.recovered(recovery, fault={"kind": "Lose", "target": {"component": "node"}, "phase": FAULT.phase})
    return LostNode(run, unheard, deleted)


def iteration(namespace: str) -> int:
    return int(one("rljob", JOB, namespace).get("status", {}).get("iteration", 0))


def told_of(pod: str, namespace: str) -> tuple[str, str]:
    """What ``explain`` says once Kubernetes knows that the pod's node is gone, and once the pod was deleted, too."""

    def lost(kind: str) -> bool:
        conditions = one("rljob", JOB, namespace)["status"]["conditions"]
        return any((found["type"], found["reason"]) == (kind, "NodeLost") for found in conditions)

    until(lambda: lost("Degraded"), PATIENCE, "a node that is known to be lost")
    unheard = explained(namespace)
    kubectl("delete", "pod", pod, "-n", namespace, "--wait=false")
    until(lambda: lost("Scheduled"), DEADLINE, "a word on the deleted pod")
    return unheard, explained(namespace)


def explained(namespace: str) -> str:
    command = ["kubectl", "tandem", "explain", JOB, "-n", namespace]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False).stdout


def test_the_job_is_complete_on_another_node(lost: LostNode, namespace: str) -> None:
    status = one("rljob", JOB, namespace)["status"]
    assert (status["phase"], status["iteration"]) == (PhaseName.SUCCEEDED, ITERATIONS), status["conditions"]
    (pod,) = objects("pods", namespace, "-l", HYBRID_PODS)
    assert pod["spec"]["nodeName"] == NODE


def test_the_job_works_again_and_that_is_no_restart(lost: LostNode, namespace: str) -> None:
    (recovery,) = lost.run.recoveries
    assert recovery.seconds is not None, recovery
    status = one("rljob", JOB, namespace)["status"]
    # A power cut that comes when the Train is over may hit a Rollout, which waits for the member in its old world.
    assert (status["restarts"], status["disruptions"]) == (0, int(recovery.new_world))


def test_nothing_that_was_on_disk_is_lost_or_changed(lost: LostNode) -> None:
    lost.run.assert_nothing_lost()


def test_every_iteration_is_trained_once_and_no_trajectory_twice(lost: LostNode) -> None:
    lost.run.assert_trained_once()


@pytest.mark.parametrize("state", ["told_unheard", "told_deleted"])
def test_a_user_is_told_of_the_node_and_what_to_do(lost: LostNode, state: str) -> None:
    told: str = getattr(lost, state)
    assert told.startswith(f"{JOB} is not progressing: Node {SECOND_NODE} does not answer"), told
    assert f"kubectl delete node {SECOND_NODE}" in told
