# SPDX-License-Identifier: Apache-2.0
"""Who decides when pods start: a queue by the hybrid Job's ``suspend`` (Kueue's contract), a gang API by its group.

The tests write what Kueue would; test_kueue.py has the real one. The scheduler, and its gang scheduling where the
cluster serves it, are real.
"""

from typing import Any

import pytest
from operator_process import OperatorProcess, World
from tiny_pods import tiny
from waiting import eventually

from tandem_api.messages.phases import Desired, DesiredState, PhaseName
from tandem_operator.cluster import JOB, RLJOB
from tandem_operator.plan import Gang

whatever_becomes_of_the_operator = pytest.mark.parametrize("operator", ["undisturbed", "killed"], indirect=True)
QUEUE = {"kueue.x-k8s.io/queue-name": "team", "kueue.x-k8s.io/priority-class": "high"}
NODES = {"kueue.x-k8s.io/flavor": "spot"}


async def hybrid(world: World) -> dict[str, Any] | None:
    return await world.get("batch/v1", "Job", "sums-hybrid")


async def admit(world: World) -> None:
    """What Kueue does once there is quota: the flavour's nodes go into the template, and the pods may start."""
    template = {"spec": {"nodeSelector": NODES}}
    await world.cluster.patch(JOB, world.namespace, "sums-hybrid", {"spec": {"suspend": False, "template": template}})


async def evict(world: World) -> None:
    """What Kueue does when another workload needs the quota."""
    await world.cluster.patch(JOB, world.namespace, "sums-hybrid", {"spec": {"suspend": True}})


async def until_desired(world: World, state: DesiredState) -> None:
    keys = await world.keys("sums")

    async def look() -> bool:
        entry = await world.store.get(keys.desired)
        return entry is not None and Desired.model_validate_json(entry.value).state is state

    await eventually(look)


@whatever_becomes_of_the_operator
async def test_a_queue_decides_when_pods_start_and_when_they_go(world: World, operator: OperatorProcess) -> None:
    await world.submit(labels=QUEUE)
    job = await world.planned()
    assert job["spec"]["suspend"] is True
    assert QUEUE.items() <= job["metadata"]["labels"].items()
    await world.until_condition("sums", "Suspended", "Queued")
    assert [pod["metadata"]["name"] for pod in [*await world.pods(), *await world.pods("orchestrator")]] == []

    await admit(world)
    await world.until_condition("sums", "Suspended", "Running")
    await until_desired(world, DesiredState.RUNNING)
    await world.enter(PhaseName.ROLLOUT)
    await world.until_status(phase="Rollout")

    await evict(world)
    await world.until_condition("sums", "Suspended", "Queued")
    await until_desired(world, DesiredState.SUSPENDED)
    await world.enter(PhaseName.RECOVER, world=2, epoch=4)
    await world.until_status(disruptions=1)
    await world.change("sums", iterations=9)
    await operator.settled()
    await world.until_status(observedGeneration=2)
    job = await world.planned()
    assert job["spec"]["suspend"] is True, "the operator overruled the queue"
    assert (await world.status())["restarts"] == 0

    await admit(world)
    await world.until_condition("sums", "Suspended", "Running")
    job = await world.planned()
    assert job["spec"]["suspend"] is False
    assert job["spec"]["template"]["spec"]["nodeSelector"] == NODES, "the operator overwrote the flavour's nodes"


@whatever_becomes_of_the_operator
async def test_what_has_failed_or_is_suspended_leaves_the_queue(world: World, operator: OperatorProcess) -> None:
    """A Job that is merely suspended would be admitted again; only a Job that is gone gives its quota back."""

    async def left() -> bool:
        return await hybrid(world) is None

    await world.submit(labels=QUEUE)
    await world.planned()
    await admit(world)
    await world.until_condition("sums", "Suspended", "Running")
    await world.change("sums", runPolicy={"suspend": True})
    await eventually(left)
    await world.change("sums", runPolicy={"suspend": False})
    assert (await world.planned())["spec"]["suspend"] is True
    await admit(world)
    await world.until_condition("sums", "Suspended", "Running")
    await world.enter(PhaseName.FAILED, reason="the loss is NaN")
    await world.until_condition("sums", "Failed", "RunFailed")
    await eventually(left)
    await operator.settled()
    assert await left()


@whatever_becomes_of_the_operator
async def test_pods_are_placed_together_or_not_at_all_where_the_cluster_can(
    world: World, operator: OperatorProcess
) -> None:
    """Of the fake driver's eight devices, two pods of five do not fit, though one would; two of three do."""
    gang = (await world.cluster.discover()).gang

    def pair(devices: int) -> dict[str, Any]:
        return tiny(replicas=2, accelerators={"count": devices, "deviceClassName": "fake.tandem-rl.dev"})

    await world.submit("large", **pair(5))
    await world.until_condition("large", "Degraded", "Unschedulable")

    async def placed() -> bool:
        there = [pod["metadata"]["name"] for pod in await world.pods() if pod["spec"].get("nodeName")]
        return len(there) == (0 if gang is Gang.KUBERNETES else 1)

    # Where pods are placed one by one, the one that does not fit may come first.
    await eventually(placed)
    await world.cluster.delete(RLJOB, world.namespace, "large")
    await world.submit("small", **pair(3))
    scheduled = await world.until_condition("small", "Scheduled", "Placed" if gang else "PlacedOneByOne")
    assert (f"together by {gang.value}" if gang else "no gang-scheduling API") in scheduled["message"]
    await operator.settled()
    assert (await world.condition("small", "Scheduled") or {}).get("status") == "True"
