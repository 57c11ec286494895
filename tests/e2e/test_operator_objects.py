# SPDX-License-Identifier: Apache-2.0
"""The operator against a real API server: every object is accepted, and every rule of a job's life holds.

Images do not exist here, so pods never run; what processes would say is written to etcd in their stead.
"""

import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kopf
import pytest
import pytest_asyncio
from etcd_server import EtcdServer, etcd_server
from operator_fixture import manifest, merged, platform, rljob
from operator_process import DEADLINE, KUBECONFIG, OperatorProcess, World, eventually

from tandem_api.environment import Secrets
from tandem_api.messages.phases import Desired, DesiredState, PhaseName, PhaseRecord
from tandem_api.schema import crd
from tandem_operator.cluster import EVENT, JOB, LEASE, POD, RLJOB, Cluster, Kind, Refused, Selection
from tandem_operator.observations import PLAN_ANNOTATION
from tandem_operator.plan import Gang, plan
from tandem_phases.store import Store

NAMESPACE = Kind("v1", "Namespace")
CRD = Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition")


def login() -> kopf.ConnectionInfo:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", KUBECONFIG)
        found = kopf.login_with_kubeconfig(settings=kopf.OperatorSettings())
    assert found is not None
    return found


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path) as running:
        yield running


@pytest_asyncio.fixture
async def world(etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A namespace of its own, under the restricted profile."""
    from tandem_operator import cluster as module

    monkeypatch.setitem(module.PLURALS, "Namespace", "namespaces")
    monkeypatch.setitem(module.PLURALS, "ResourceQuota", "resourcequotas")
    monkeypatch.setitem(module.PLURALS, "CustomResourceDefinition", "customresourcedefinitions")
    name = f"operator-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    async with Cluster(login) as cluster, Store(etcd.endpoints, timeout=2.0) as store:
        await cluster.apply({**crd(), "metadata": {"name": crd()["metadata"]["name"]}})
        await cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        world = World(cluster, store, name)
        account = Selection(Kind("v1", "ServiceAccount"), name, fields="metadata.name=default")

        async def default_account() -> bool:
            return bool((await cluster.list(account))[0])

        await eventually(default_account)
        yield world
        await cluster.delete(NAMESPACE, "", name)


@pytest_asyncio.fixture
async def operator(world: World, etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[OperatorProcess]:
    process = OperatorProcess(tmp_path, world.namespace, etcd.endpoints, "one")
    process.start()
    await eventually(process.ready)
    yield process
    await process.stop()
    print(process.log)


def small(name: str = "sums", labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    raw = manifest(name, **spec)
    raw["metadata"]["labels"] = labels or {}
    return raw


def phase(name: PhaseName, **fields: Any) -> str:
    given = {"epoch": 3, "iteration": 1, "weight_version": 1, "world": 1, "members": (0,), "started": 1.0}
    return PhaseRecord(name=name, **(given | fields)).wire()


async def planned(world: World, name: str = "sums") -> dict[str, Any]:
    """The hybrid Job, once all other objects are there."""

    async def look() -> dict[str, Any] | None:
        found = await world.get("batch/v1", "Job", f"{name}-hybrid")
        return found if found and PLAN_ANNOTATION in found["metadata"].get("annotations", {}) else None

    return await eventually(look)


async def events(world: World, name: str = "sums") -> list[dict[str, Any]]:
    selection = Selection(EVENT, world.namespace, fields=f"involvedObject.kind=RLJob,involvedObject.name={name}")
    return (await world.cluster.list(selection))[0]


# -- plan() on a real API server ---------------------------------------------------------------------------------------

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


@pytest.mark.parametrize(("spec", "capabilities"), VARIANTS.values(), ids=VARIANTS)
async def test_every_planned_object_is_accepted_and_its_pods_pass_the_restricted_profile(
    world: World, spec: dict[str, Any], capabilities: dict[str, Any]
) -> None:
    job = rljob(**spec)
    job = job.model_copy(update={"metadata": job.metadata.model_copy(update={"namespace": world.namespace})})
    place = platform(**capabilities)
    if place.capabilities.gang not in (None, (await world.cluster.discover()).gang):
        place = replace(place, capabilities=replace(place.capabilities, gang=None))
    objects = plan(job, place, Secrets("token"))
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


# -- a job's life ------------------------------------------------------------------------------------------------------


async def test_an_applied_job_gets_its_objects_its_status_and_its_desired_state(
    world: World, operator: OperatorProcess
) -> None:
    await world.apply(small(hybrid={"replicas": 2}))
    hybrid = await planned(world)
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
    entry = await world.store.get((await world.keys("sums")).desired)
    assert entry is not None
    assert Desired.model_validate_json(entry.value) == Desired(state=DesiredState.RUNNING, generation=1)


async def test_secrets_are_drawn_once(world: World, operator: OperatorProcess) -> None:
    await world.apply(small())
    await planned(world)
    before = await world.get("v1", "Secret", "sums-secrets")
    await world.change("sums", iterations=5)
    await eventually_generation(world, 2)
    await operator.stop()
    operator.start()
    await world.cluster.delete(Kind("v1", "Service"), world.namespace, "sums-hybrid")
    await eventually(lambda: world.get("v1", "Service", "sums-hybrid"))
    after = await world.get("v1", "Secret", "sums-secrets")
    assert before is not None
    assert after is not None
    assert before["data"] == after["data"]


async def eventually_generation(world: World, generation: int, name: str = "sums") -> None:
    async def look() -> bool:
        job = await world.job(name)
        return bool(job and job.get("status", {}).get("observedGeneration") == generation)

    await eventually(look)


async def test_an_allowed_change_reaches_the_processes_and_a_forbidden_one_is_refused(
    world: World, operator: OperatorProcess
) -> None:
    await world.apply(small())
    await planned(world)
    await world.change("sums", iterations=9)
    await eventually_generation(world, 2)
    spec = await world.get("v1", "ConfigMap", "sums-spec")
    assert spec is not None
    assert '"iterations": 9' in spec["data"]["job.json"]
    with pytest.raises(Refused, match="fixed once the job exists"):
        await world.change("sums", seed=77)


async def test_what_is_deleted_of_a_running_job_is_made_again(world: World, operator: OperatorProcess) -> None:
    await world.apply(small())
    await planned(world)
    for kind, name in ((Kind("v1", "Service"), "sums-hybrid"), (JOB, "sums-orchestrator")):
        old = await world.cluster.get(kind, world.namespace, name)
        assert old is not None
        await world.cluster.delete(kind, world.namespace, name)

        async def anew(kind: Kind = kind, name: str = name, uid: str = old["metadata"]["uid"]) -> bool:
            found = await world.cluster.get(kind, world.namespace, name)
            return found is not None and found["metadata"]["uid"] != uid

        await eventually(anew)


async def test_suspend_waits_for_the_drain_and_resume_gives_the_pods_back(
    world: World, operator: OperatorProcess
) -> None:
    await world.apply(small())
    await planned(world)
    keys = await world.keys("sums")
    await world.store.put(keys.phase, phase(PhaseName.ROLLOUT))
    await world.change("sums", runPolicy={"suspend": True})
    await world.until_condition("sums", "Suspended", "Draining")
    assert (await planned(world))["spec"]["suspend"] is False
    await world.store.put(keys.phase, phase(PhaseName.SUSPENDED, epoch=4))
    await world.until_condition("sums", "Suspended", "Suspended")
    assert (await planned(world))["spec"]["suspend"] is True
    orchestrator = await world.get("batch/v1", "Job", "sums-orchestrator")
    assert orchestrator is not None
    assert orchestrator["spec"]["suspend"] is False
    await world.change("sums", runPolicy={"suspend": False})

    async def resumed() -> bool:
        return (await planned(world))["spec"]["suspend"] is False

    await eventually(resumed)


async def test_a_queue_decides_when_pods_start(world: World, operator: OperatorProcess) -> None:
    await world.apply(small(labels={"kueue.x-k8s.io/queue-name": "team"}))
    hybrid = await planned(world)
    assert hybrid["spec"]["suspend"] is True
    assert hybrid["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    await world.until_condition("sums", "Suspended", "Queued")
    await world.cluster.patch(JOB, world.namespace, "sums-hybrid", {"spec": {"suspend": False}})
    await world.until_condition("sums", "Suspended", "Running")
    assert (await planned(world))["spec"]["suspend"] is False


async def test_a_finished_job_is_never_made_again(world: World, operator: OperatorProcess, etcd: EtcdServer) -> None:
    await world.apply(small())
    await planned(world)
    await world.store.put((await world.keys("sums")).phase, phase(PhaseName.FAILED, reason="the loss is NaN"))
    failed = await world.until_condition("sums", "Failed", "RunFailed")
    assert failed["message"] == "the loss is NaN"

    async def quiet() -> bool:
        found = await world.get("batch/v1", "Job", "sums-hybrid")
        return bool(found and found["spec"]["suspend"])

    await eventually(quiet)
    before = await world.job("sums")
    await world.cluster.delete(JOB, world.namespace, "sums-hybrid")
    await operator.stop()
    await world.store.delete_prefix("/tandem/v1/")
    operator.start()
    await eventually(operator.ready)
    # Another job, applied later, is looked after: so the finished one has been looked at.
    await world.apply(small("later"))
    await planned(world, "later")
    assert await world.get("batch/v1", "Job", "sums-hybrid") is None
    after = await world.job("sums")
    assert before is not None
    assert after is not None
    assert after["status"] == before["status"]


async def test_a_job_whose_time_to_live_is_over_is_deleted(world: World, operator: OperatorProcess) -> None:
    await world.apply(small(runPolicy={"ttlSecondsAfterFinished": 1}))
    await planned(world)
    await world.store.put((await world.keys("sums")).phase, phase(PhaseName.FAILED))

    async def deleted() -> bool:
        return await world.job("sums") is None

    await eventually(deleted)


async def test_a_job_fails_at_its_deadline(world: World, operator: OperatorProcess) -> None:
    await world.apply(small(runPolicy={"activeDeadlineSeconds": 2}))
    await world.until_condition("sums", "Failed", "DeadlineExceeded")


async def test_restarts_are_counted_over_operator_restarts_and_the_budget_ends_the_job(
    world: World, operator: OperatorProcess
) -> None:
    await world.apply(small(runPolicy={"maxRestarts": 1}))
    await planned(world)
    keys = await world.keys("sums")
    await world.store.put(keys.phase, phase(PhaseName.RECOVER, world=2))

    async def counted() -> bool:
        job = await world.job("sums")
        return bool(job and job["status"]["restarts"] == 1)

    await eventually(counted)
    await operator.stop(signal.SIGKILL)
    operator.start()
    await world.store.put(keys.phase, phase(PhaseName.RECOVER, world=3, epoch=9))
    await world.until_condition("sums", "Failed", "RestartsExhausted")


async def test_a_job_deleted_while_no_operator_runs_leaves_nothing(world: World, operator: OperatorProcess) -> None:
    await world.apply(small())
    await planned(world)
    keys = await world.keys("sums")
    await world.store.put(keys.phase, phase(PhaseName.ROLLOUT))
    await operator.stop(signal.SIGKILL)
    await world.cluster.delete(RLJOB, world.namespace, "sums")

    async def collected() -> bool:
        ours = "tandem-rl.dev/job=sums"
        kinds = (JOB, POD, Kind("v1", "Service"), Kind("v1", "Secret"), Kind("v1", "ConfigMap"))
        return not any([(await world.cluster.list(Selection(kind, world.namespace, ours)))[0] for kind in kinds])

    await eventually(collected)
    assert (await world.store.list(keys.prefix))[0]
    operator.start()

    async def forgotten() -> bool:
        return not (await world.store.list(keys.prefix))[0]

    await eventually(forgotten)


# -- trouble -----------------------------------------------------------------------------------------------------------

MISSING = {"spec": {"volumes": [{"name": "m", "persistentVolumeClaim": {"claimName": "missing"}}]}}
TROUBLE: list[tuple[dict[str, Any], str, str]] = [
    ({}, "ImagePullFailed", "cannot pull its image"),
    ({"hybrid": {"template": {"spec": {"nodeSelector": {"no": "such"}}}}}, "Unschedulable", "cannot be placed"),
    ({"hybrid": {"template": MISSING}}, "MissingVolume", "PersistentVolumeClaim missing"),
    (
        {"hybrid": {"template": {"spec": {"hostNetwork": True}}}},
        "PodsRefused",
        "violates PodSecurity",
    ),
    ({"hybrid": {"template": {"spec": {"nope": 1}}}}, "ObjectsRefused", "nope"),
]


@pytest.mark.parametrize(("spec", "reason", "words"), TROUBLE, ids=[f"{case[1]}-{case[2]}" for case in TROUBLE])
async def test_trouble_is_a_condition_and_an_event_within_30_seconds(
    world: World, operator: OperatorProcess, spec: dict[str, Any], reason: str, words: str
) -> None:
    if reason in ("Unschedulable", "MissingVolume", "PodsRefused"):
        # The orchestrator's image would be the first trouble; its pod is not what this is about.
        spec = merged(spec, {"orchestrator": {"template": {"spec": {"schedulerName": "nobody"}}}})
    await world.apply(small(**spec))
    degraded = await world.until_condition("sums", "Degraded", reason, 30)
    assert degraded["status"] == "True"
    assert words in degraded["message"]

    async def told() -> bool:
        return any(event["reason"] == reason and event["type"] == "Warning" for event in await events(world))

    await eventually(told)


async def test_an_etcd_that_goes_away_is_told_and_its_return_too(
    world: World, operator: OperatorProcess, etcd: EtcdServer
) -> None:
    await world.apply(small())
    await planned(world)
    etcd.stop()
    await world.until_condition("sums", "Degraded", "EtcdUnreachable", 30)
    etcd.start()

    async def back() -> bool:
        found = await world.condition("sums", "Degraded")
        return found is not None and found["reason"] != "EtcdUnreachable"

    await eventually(back)


async def test_a_job_that_cannot_be_made_does_not_hold_up_the_others(world: World, operator: OperatorProcess) -> None:
    await world.apply(small("broken", hybrid={"template": {"spec": {"nope": 1}}}))
    await world.until_condition("broken", "Degraded", "ObjectsRefused")
    for number in range(5):
        await world.apply(small(f"fine-{number}"))
    for number in range(5):
        await planned(world, f"fine-{number}")


# -- replicas ----------------------------------------------------------------------------------------------------------


async def test_when_the_leader_is_killed_the_other_replica_goes_on(
    world: World, operator: OperatorProcess, etcd: EtcdServer, tmp_path: Path
) -> None:
    await world.apply(small("first"))
    await planned(world, "first")
    second = OperatorProcess(tmp_path, world.namespace, etcd.endpoints, "two")
    second.start()
    try:
        await eventually(second.ready)
        assert "tandem_operator_leader 0.0" in second.metrics()
        await operator.stop(signal.SIGKILL)
        await world.apply(small("second"))
        await planned(world, "second")
        lease = await world.cluster.get(LEASE, world.namespace, "tandem-operator")
        assert lease is not None
        assert lease["spec"]["holderIdentity"] == "two"
    finally:
        await second.stop()


async def test_a_leader_that_is_told_to_stop_gives_the_lease_back(world: World, operator: OperatorProcess) -> None:
    async def leading() -> bool:
        lease = await world.cluster.get(LEASE, world.namespace, "tandem-operator")
        return bool(lease and lease["spec"]["holderIdentity"] == "one")

    await eventually(leading)
    assert await operator.stop() == 0
    assert not await leading()


async def test_a_leader_whose_lease_was_taken_ends_with_an_error(world: World, operator: OperatorProcess) -> None:
    async def held() -> dict[str, Any] | None:
        return await world.cluster.get(LEASE, world.namespace, "tandem-operator")

    lease = await eventually(held)
    lease["spec"] |= {
        "holderIdentity": "thief",
        "leaseDurationSeconds": 3600,
        "renewTime": "2100-01-01T00:00:00.000000Z",
    }

    async def stolen() -> bool:
        try:
            current = await held()
            assert current is not None
            await world.cluster.replace({**current, "spec": lease["spec"]})
        except Refused:
            return False
        return True

    await eventually(stolen)
    assert await operator.ended(DEADLINE) == 1
