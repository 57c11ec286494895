# SPDX-License-Identifier: Apache-2.0
"""What the operator makes of an RLJob: every object is accepted by a real API server, kept, and changed when it may be.

Images do not exist here, so pods never run.
"""

from dataclasses import replace
from typing import Any

import pytest
from operator_fixture import platform, rljob
from operator_process import OperatorProcess, World
from waiting import eventually

from tandem_api.environment import Secrets
from tandem_api.messages.phases import Desired, DesiredState
from tandem_operator.certificates import draw
from tandem_operator.cluster import JOB, Kind, Refused
from tandem_operator.plan import Gang, plan
from tandem_operator.plan.tls import server_names

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cpu": ({}, {}),
    "claim": ({"hybrid": {"replicas": 2, "accelerators": {"count": 2}}}, {"pod_level_resources": True}),
    "shared": ({"hybrid": {"accelerators": {"count": 2, "isolation": "Shared"}}}, {}),
    "resources": (
        {
            "engine": {"resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"memory": "2Gi"}}},
            "trainer": {"resources": {"requests": {"cpu": 2}, "limits": {"memory": "4Gi"}}, "extraArgs": ["--x"]},
        },
        {"pod_level_resources": True},
    ),
    "gang": ({"hybrid": {"replicas": 2}}, {"gang": Gang.KUBERNETES}),
    "claimed checkpoints": ({"checkpoint": {"volume": {"claimName": "mine"}}}, {}),
}
RUNS = [(*variant, False) for variant in VARIANTS.values()] + [(*VARIANTS["cpu"], True)]


@pytest.mark.parametrize(("spec", "capabilities", "tls"), RUNS, ids=[*VARIANTS, "cpu over TLS"])
async def test_every_planned_object_is_accepted_and_its_pods_pass_the_restricted_profile(
    world: World, spec: dict[str, Any], capabilities: dict[str, Any], tls: bool
) -> None:
    job = rljob(**spec)
    job = job.model_copy(update={"metadata": job.metadata.model_copy(update={"namespace": world.namespace})})
    place = platform(**capabilities)
    if place.capabilities.gang not in (None, (await world.cluster.discover()).gang):
        place = replace(place, capabilities=replace(place.capabilities, gang=None))
    objects = plan(job, place, Secrets("token"), certificate=draw(server_names(job)) if tls else None)
    # What a pod names must exist for a dry run of the pod to get past admission.
    account = next(found for found in objects if found["kind"] == "ServiceAccount")
    account["metadata"].pop("ownerReferences")
    await world.cluster.apply(account)
    for found in objects:
        await world.cluster.apply(found, dry_run=True)
        if found["kind"] == "Job":
            template = found["spec"]["template"]
            metadata = {**template["metadata"], "name": found["metadata"]["name"], "namespace": world.namespace}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
            await world.cluster.apply(pod, dry_run=True)


async def test_an_applied_job_gets_its_objects_its_status_and_its_desired_state(
    world: World, operator: OperatorProcess
) -> None:
    await world.submit(hybrid={"replicas": 2})
    hybrid = await world.planned()
    assert hybrid["spec"]["suspend"] is False
    for api, kind, name in (
        ("v1", "Service", "sums-hybrid"),
        ("v1", "Service", "sums-orchestrator"),
        ("v1", "ConfigMap", "sums-spec"),
        ("v1", "Secret", "sums-secrets"),
        ("v1", "PersistentVolumeClaim", "sums-orchestrator"),
        ("networking.k8s.io/v1", "NetworkPolicy", "sums-hybrid"),
        ("policy/v1", "PodDisruptionBudget", "sums-hybrid"),
    ):
        found = await world.get(api, kind, name)
        assert found is not None, name
        assert found["metadata"]["ownerReferences"][0]["kind"] == "RLJob"
    await world.until_condition("sums", "Ready", "PodsNotReady")
    job = await world.job("sums")
    assert job is not None
    assert job["status"]["hybridReady"] == "0/2"
    # kopf leaves no trace on the user's object.
    assert "annotations" not in job["metadata"]
    assert "finalizers" not in job["metadata"]
    desired = (await world.keys("sums")).desired
    entry = await eventually(lambda: world.store.get(desired))
    assert Desired.model_validate_json(entry.value) == Desired(state=DesiredState.RUNNING, generation=1)


async def test_secrets_are_drawn_once(world: World, operator: OperatorProcess) -> None:
    await world.submit()
    await world.planned()
    before = await world.get("v1", "Secret", "sums-secrets")
    await world.change("sums", iterations=5)
    await until_observed(world, 2)
    await operator.stop()
    operator.start()
    await world.cluster.delete(Kind("v1", "Service"), world.namespace, "sums-hybrid")
    await eventually(lambda: world.get("v1", "Service", "sums-hybrid"))
    after = await world.get("v1", "Secret", "sums-secrets")
    assert before is not None
    assert after is not None
    assert before["data"] == after["data"]


async def until_observed(world: World, generation: int) -> None:
    async def look() -> bool:
        job = await world.job("sums")
        return bool(job and job.get("status", {}).get("observedGeneration") == generation)

    await eventually(look)


async def test_an_allowed_change_reaches_the_processes_and_a_forbidden_one_is_refused(
    world: World, operator: OperatorProcess
) -> None:
    await world.submit()
    await world.planned()
    await world.change("sums", iterations=9)
    await until_observed(world, 2)

    async def changed() -> bool:
        spec = await world.get("v1", "ConfigMap", "sums-spec")
        return spec is not None and '"iterations": 9' in spec["data"]["job.json"]

    await eventually(changed)
    with pytest.raises(Refused, match="fixed once the job exists"):
        await world.change("sums", seed=77)


async def test_what_is_deleted_of_a_running_job_is_made_again(world: World, operator: OperatorProcess) -> None:
    await world.submit()
    await world.planned()
    for kind, name in ((Kind("v1", "Service"), "sums-hybrid"), (JOB, "sums-orchestrator")):
        old = await world.cluster.get(kind, world.namespace, name)
        assert old is not None
        await world.cluster.delete(kind, world.namespace, name)

        async def anew(kind: Kind = kind, name: str = name, uid: str = old["metadata"]["uid"]) -> bool:
            found = await world.cluster.get(kind, world.namespace, name)
            return found is not None and found["metadata"]["uid"] != uid

        await eventually(anew)
