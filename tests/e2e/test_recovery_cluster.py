# SPDX-License-Identifier: Apache-2.0
"""One RLJob on a real Kubernetes that meets faults, one after the other, and loses nothing by it (`make e2e-recovery`).

``tandem chaos run`` does them, but for those of etcd and the operator, which no job's user may touch.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from broken_job import OPERATOR, BrokenJob, kill_operators
from broken_run import SMALL, BrokenRun
from kubectl import SYSTEM, kubectl, objects, one
from running import manifest
from waiting import DEADLINE, until

from tandem_api.messages.phases import PhaseName
from tandem_cli.chaos.plan import Component, Fault, Kind

P = PhaseName
JOB = "chain-sum"
ITERATIONS = 30
MINUTES = 30
CHANGES: dict[str, Any] = {
    **SMALL,
    "spec.iterations": ITERATIONS,
    "spec.orchestrator": {"resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}}},
}
ETCD_MEMBERS = 3
ETCD = Fault(Kind.KILL, Component.ETCD, P.TRAIN)
ETCD_LEADER = Fault(Kind.KILL, Component.ETCD, P.ROLLOUT)
WITHOUT_OPERATOR = Fault(Kind.KILL, Component.TRAINER, P.TRAIN)
"""While the job recovers from this one, all replicas of the operator are killed."""
FAULTS = (
    Fault(Kind.KILL, Component.ENGINE, P.ROLLOUT, after=0.3),
    Fault(Kind.LOSE_LEASE, Component.SIDECAR, P.ROLLOUT, after=0.3),
    WITHOUT_OPERATOR,
    Fault(Kind.LOSE_LEASE, Component.ORCHESTRATOR, P.RELEASE),
    Fault(Kind.CORRUPT_SEGMENT, Component.TRAINER, P.HANDOFF),
    Fault(Kind.KILL, Component.ORCHESTRATOR, P.HANDOFF),
    Fault(Kind.STOP, Component.TRAINER, P.TRAIN, seconds=15.0),
    Fault(Kind.OUT_OF_MEMORY, Component.ORCHESTRATOR, P.TRAIN),
    Fault(Kind.KILL, Component.TRAINER, P.HANDOFF),
    Fault(Kind.KILL, Component.POD, P.TRAIN),
    Fault(Kind.KILL, Component.ORCHESTRATOR, P.ROLLOUT, after=0.3),
    Fault(Kind.KILL, Component.ENGINE, P.RELEASE),
)
pytestmark = [pytest.mark.recovery, pytest.mark.timeout((MINUTES + 15) * 60)]


@pytest.fixture(scope="module")
def run(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> BrokenRun:
    """The run after all faults, once the job is Complete."""
    directory = tmp_path_factory.mktemp("recovery")
    file = manifest(directory / "job.yaml", CHANGES)
    kubectl("apply", "-n", namespace, "-f", str(file))
    run = BrokenRun(file, directory / "out", ITERATIONS, "cluster")
    job = BrokenJob(JOB, namespace, run)
    job.begun(MINUTES * 60.0)
    recoveries, operators = [], []
    with job.watched():
        leaderless = job.kill_etcd_leader(ETCD_LEADER)
        recoveries.append(job.kill_etcd(ETCD))
        for fault, recovery in job.inflict(FAULTS, directory):
            if recovery is not None:
                recoveries.append(recovery)
            elif fault is WITHOUT_OPERATOR:
                operators.append(kill_operators(fault.phase))
        job.ended(MINUTES * 60.0)
    job.collect()
    run.recovered(leaderless, fault={"kind": "Kill", "target": {"component": "etcd's leader"}, "phase": P.ROLLOUT})
    for recovery in recoveries:
        run.recovered(recovery)
    for recovery in operators:
        run.measured(recovery)
    return run


def test_the_job_is_complete(run: BrokenRun, namespace: str) -> None:
    status = one("rljob", JOB, namespace)["status"]
    assert (status["phase"], status["iteration"]) == (P.SUCCEEDED, ITERATIONS), status["conditions"]


def test_a_change_of_etcds_leader_costs_no_new_world(run: BrokenRun) -> None:
    assert not run.recoveries[0].new_world, run.recoveries[0].reason


@pytest.mark.parametrize("number", range(2 + len(FAULTS)), ids=map(str, (ETCD_LEADER, ETCD, *FAULTS)))
def test_the_job_works_again_after(run: BrokenRun, number: int) -> None:
    recovery = run.recoveries[number]
    assert recovery.seconds is not None, recovery


def test_the_job_did_without_the_operators_that_were_killed(run: BrokenRun, namespace: str) -> None:
    began = one("rljob", JOB, namespace)["metadata"]["creationTimestamp"]
    operators = objects("pods", SYSTEM, "-l", OPERATOR)
    assert operators
    assert all(pod["metadata"]["creationTimestamp"] > began for pod in operators)


def test_weights_that_were_damaged_on_their_way_are_refused_by_the_tensors_name(run: BrokenRun) -> None:
    run.assert_damage_refused()


def test_nothing_that_was_on_disk_is_lost_or_changed(run: BrokenRun) -> None:
    run.assert_nothing_lost()


def test_every_iteration_is_trained_once_and_no_trajectory_twice(run: BrokenRun) -> None:
    run.assert_trained_once()


@pytest.fixture
def operators() -> Iterator[str]:
    """The operator's Deployment. However few replicas it is left with, they are as many again afterwards."""
    (deployment,) = objects("deployments", SYSTEM, "-l", OPERATOR)
    name = f"deployment/{deployment['metadata']['name']}"
    yield name
    kubectl("scale", name, "-n", SYSTEM, f"--replicas={deployment['spec']['replicas']}")
    kubectl("rollout", "status", name, "-n", SYSTEM, "--timeout=3m")


def test_a_job_whose_operators_are_killed_at_its_start_for_good_runs_to_its_end(
    run: BrokenRun, namespace: str, operators: str, tmp_path: Path
) -> None:
    file = manifest(tmp_path / "job.yaml", CHANGES | {"metadata.name": "alone", "spec.iterations": 3})
    kubectl("apply", "-n", namespace, "-f", str(file))
    until(lambda: one("rljob", "alone", namespace).get("status", {}).get("phase") == "Starting", DEADLINE, "its start")
    kubectl("scale", operators, "-n", SYSTEM, "--replicas=0")
    kubectl("delete", "pods", "-n", SYSTEM, "-l", OPERATOR, "--grace-period=0", "--force")
    jobs = ("job/alone-hybrid", "job/alone-orchestrator")
    kubectl("wait", *jobs, "-n", namespace, "--for=condition=Complete", f"--timeout={MINUTES}m")
    assert one("rljob", "alone", namespace)["status"]["phase"] == "Starting"
    kubectl("scale", operators, "-n", SYSTEM, "--replicas=1")
    kubectl("wait", "rljob/alone", "-n", namespace, "--for=condition=Complete", "--timeout=3m")
    assert one("rljob", "alone", namespace)["status"]["iteration"] == 3
