# SPDX-License-Identifier: Apache-2.0
"""The rules of a job's life against a real API server, each with an operator that runs and with one that is killed.

Killed means SIGKILL at a random moment of the test, and a fresh start. What the processes of a job would say is written
to etcd in their stead. Where a rule is about pods, the kubelet really runs them, with a tiny program in each container;
elsewhere their image does not exist.
"""

import signal
from typing import Any

import pytest
from etcd_server import EtcdServer
from operator_process import OperatorProcess, World
from tiny_pods import HUNGRY, tiny
from waiting import DEADLINE, eventually

from tandem_api.messages.phases import Desired, DesiredState, PhaseName
from tandem_operator.cluster import JOB, POD, RLJOB, Kind, Selection

whatever_becomes_of_the_operator = pytest.mark.parametrize("operator", ["undisturbed", "killed"], indirect=True)
OURS = "tandem-rl.dev/job=sums"
KINDS = (
    JOB,
    POD,
    *(Kind("v1", name) for name in ("Service", "Secret", "ConfigMap", "PersistentVolumeClaim", "ServiceAccount")),
    Kind("networking.k8s.io/v1", "NetworkPolicy"),
    Kind("policy/v1", "PodDisruptionBudget"),
)


async def objects(world: World, *kinds: Kind) -> list[dict[str, Any]]:
    return [found for kind in kinds for found in (await world.cluster.list(Selection(kind, world.namespace, OURS)))[0]]


async def until_there_is_nothing(world: World, *kinds: Kind) -> None:
    async def nothing() -> bool:
        return not await objects(world, *kinds)

    await eventually(nothing, 2 * DEADLINE)


async def until_ready(world: World) -> list[dict[str, Any]]:
    """The hybrid pods, once all of them are ready."""
    await world.until_condition("sums", "Ready", "AllPodsReady")
    return await world.pods()


@pytest.mark.parametrize(
    "event", ["its time to live", "a child was deleted", "an operator restart", "an operator upgrade"]
)
@whatever_becomes_of_the_operator
async def test_a_finished_job_is_never_recreated_or_rerun_after(
    event: str, world: World, operator: OperatorProcess
) -> None:
    lived = event == "its time to live"
    await world.submit(runPolicy={"ttlSecondsAfterFinished": 1} if lived else {})
    await world.planned()
    await world.enter(PhaseName.FAILED, reason="the loss is NaN")
    if lived:
        await until_there_is_nothing(world, RLJOB, *KINDS)
    else:
        failed = await world.until_condition("sums", "Failed", "RunFailed")
        assert failed["message"] == "the loss is NaN"
        await until_there_is_nothing(world, POD)
    await operator.settled()
    before = await world.job("sums")
    if event == "a child was deleted":
        await world.cluster.delete(JOB, world.namespace, "sums-hybrid")
        await world.cluster.delete(Kind("v1", "Service"), world.namespace, "sums-hybrid")
    elif event == "an operator restart":
        await operator.stop()
        await world.store.delete_prefix("/tandem/v1/")
        operator.start()
    elif event == "an operator upgrade":
        await operator.stop()
        operator.settings["images"] = dict.fromkeys(("orchestrator", "engine", "trainer"), "tandem.invalid/none:2")
        operator.start()
    await operator.settled()
    # Another job, applied later, is looked after: so the finished one has been looked at.
    await world.submit("later")
    await world.planned("later")
    assert not await objects(world, POD)
    assert all(work["spec"]["suspend"] for work in await objects(world, JOB))
    after = await world.job("sums")
    assert (before and before["status"]) == (after and after["status"])
    if event == "a child was deleted":
        assert await world.get("batch/v1", "Job", "sums-hybrid") is None
        assert await world.get("v1", "Service", "sums-hybrid") is None


@whatever_becomes_of_the_operator
async def test_the_retry_budget_survives_restarts(world: World, operator: OperatorProcess) -> None:
    await world.submit(runPolicy={"maxRestarts": 1})
    await world.planned()
    await world.enter(PhaseName.RECOVER, world=2)
    await world.until_status(restarts=1)
    await operator.settled()
    await operator.stop(signal.SIGKILL)
    operator.start()
    await operator.settled()
    assert (await world.status())["restarts"] == 1
    await world.enter(PhaseName.RECOVER, world=3, epoch=9)
    await world.until_condition("sums", "Failed", "RestartsExhausted")


@whatever_becomes_of_the_operator
async def test_disruptions_do_not_count_as_restarts(world: World, operator: OperatorProcess) -> None:
    """The evicted pod takes its time to end, as one that saves its work does."""
    slowly = {"lifecycle": {"preStop": {"sleep": {"seconds": 12}}}}
    await world.submit(**tiny(trainer=slowly), runPolicy={"maxRestarts": 0})
    (pod,) = await until_ready(world)
    await world.enter(PhaseName.ROLLOUT)
    await world.until_status(phase="Rollout")
    await world.evict(pod)
    await world.until_condition("sums", "Ready", "Disrupted")
    await world.enter(PhaseName.RECOVER, world=2, epoch=4)
    await world.until_status(disruptions=1)
    await operator.settled()
    assert (await world.status())["restarts"] == 0
    assert await world.condition("sums", "Failed") is None


@whatever_becomes_of_the_operator
async def test_one_stuck_or_slow_job_never_delays_another(world: World, operator: OperatorProcess) -> None:
    """Stuck: the API server refuses what the job needs. Slow: its pods never get anywhere."""
    await world.submit("stuck", hybrid={"template": {"spec": {"nope": 1}}})
    await world.submit("slow", hybrid={"template": {"spec": {"nodeSelector": {"no": "such"}}}})
    await world.until_condition("stuck", "Degraded", "ObjectsRefused")
    for number in range(5):
        await world.submit(f"fine-{number}")
    for number in range(5):
        await world.planned(f"fine-{number}")
    await operator.settled()
    await world.submit("afterwards")
    await world.planned("afterwards")


@pytest.mark.parametrize("moment", ["while it runs", "while no operator runs"])
@whatever_becomes_of_the_operator
async def test_a_deleted_job_leaves_nothing(moment: str, world: World, operator: OperatorProcess) -> None:
    await world.submit(hybrid={"replicas": 2})
    await world.planned()
    keys = await world.keys("sums")
    await world.enter(PhaseName.ROLLOUT)
    down = moment == "while no operator runs"
    if down:
        await operator.settled()
        await operator.stop(signal.SIGKILL)
    await world.cluster.delete(RLJOB, world.namespace, "sums")
    await until_there_is_nothing(world, *KINDS)
    if down:
        assert (await world.store.list(keys.prefix))[0]
        operator.start()

    async def forgotten() -> bool:
        return not (await world.store.list(keys.prefix))[0]

    await eventually(forgotten)
    await operator.settled()
    assert await forgotten()
    assert not await objects(world, *KINDS)


@whatever_becomes_of_the_operator
async def test_an_oom_killed_container_never_leaves_running_for_ever(world: World, operator: OperatorProcess) -> None:
    """The trainer's log, 64 MiB of shared memory, is more than its limit: the kernel kills it again and again."""
    await world.submit(
        **tiny(trainer={**HUNGRY, "resources": {"limits": {"memory": "40Mi"}}}), runPolicy={"maxRestarts": 1}
    )
    told = await world.until_condition("sums", "Degraded", "OutOfMemory")
    assert "trainer" in told["message"]
    await world.until_condition("sums", "Failed", "RestartsExhausted", 2 * DEADLINE)
    await until_there_is_nothing(world, POD)
    await operator.settled()
    assert (await world.status())["phase"] == "Failed"
    assert not await objects(world, POD)


@whatever_becomes_of_the_operator
async def test_suspend_drains_and_frees_the_accelerators_and_resume_continues_with_the_same_buffer(
    world: World, operator: OperatorProcess
) -> None:
    """That the work in between is saved and goes on is the processes' part: tests/integration/test_run_whole.py."""
    claims = Kind("resource.k8s.io/v1", "ResourceClaim")
    devices = {"count": 2, "deviceClassName": "fake.tandem-rl.dev"}
    await world.submit(**tiny(accelerators=devices))
    await until_ready(world)
    keys = await world.keys("sums")
    await world.enter(PhaseName.ROLLOUT)
    await world.until_status(phase="Rollout", iteration=1)
    (orchestrator,) = await world.pods("orchestrator")
    buffer = await world.get("v1", "PersistentVolumeClaim", "sums-orchestrator")

    await world.change("sums", runPolicy={"suspend": True})
    await world.until_condition("sums", "Suspended", "Draining")
    assert await objects(world, claims), "devices are kept while work is drained"
    await world.enter(PhaseName.SUSPENDED, epoch=4)
    await world.until_condition("sums", "Suspended", "Suspended")
    await until_there_is_nothing(world, claims)

    async def gone() -> bool:
        return not await world.pods()

    await eventually(gone)

    await world.change("sums", runPolicy={"suspend": False})
    await until_ready(world)
    await operator.settled()
    desired = await world.store.get(keys.desired)
    assert desired is not None
    assert Desired.model_validate_json(desired.value).state is DesiredState.RUNNING
    assert (await world.status())["iteration"] == 1
    assert [pod["metadata"]["uid"] for pod in await world.pods("orchestrator")] == [orchestrator["metadata"]["uid"]]
    after = await world.get("v1", "PersistentVolumeClaim", "sums-orchestrator")
    assert (buffer and buffer["metadata"]["uid"]) == (after and after["metadata"]["uid"])


@whatever_becomes_of_the_operator
async def test_a_job_fails_at_its_deadline(world: World, operator: OperatorProcess) -> None:
    await world.submit(runPolicy={"activeDeadlineSeconds": 2})
    await world.until_condition("sums", "Failed", "DeadlineExceeded")
    await until_there_is_nothing(world, POD)
    await operator.settled()
    assert (await world.status())["phase"] == "Failed"


@whatever_becomes_of_the_operator
async def test_a_job_runs_on_while_etcd_is_away(world: World, operator: OperatorProcess, etcd: EtcdServer) -> None:
    await world.submit(**tiny())
    pods = await until_ready(world)
    await world.enter(PhaseName.TRAIN)
    await world.until_status(phase="Train")
    etcd.stop()
    await world.until_condition("sums", "Degraded", "EtcdUnreachable")
    etcd.start()

    async def back() -> bool:
        found = await world.condition("sums", "Degraded")
        return found is not None and found["reason"] == "AsExpected"

    await eventually(back)
    await operator.settled()
    assert (await world.status())["phase"] == "Train"
    assert [pod["metadata"]["uid"] for pod in await world.pods()] == [pod["metadata"]["uid"] for pod in pods]
