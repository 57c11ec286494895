# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in a real cluster is, within 30 s of Kubernetes knowing it, a condition and an Event on the RLJob.

The kubelet, the scheduler and admission are real. Containers that are not what a case is about run a tiny program.
"""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from etcd_server import EtcdServer
from operator_fixture import merged
from operator_process import OperatorProcess, World
from ports import free_port
from tiny_pods import FAILING, tiny
from waiting import eventually

from tandem_api.errors import TryAgain
from tandem_operator.cluster import EVENT, Kind, Selection
from tandem_operator.configuration import CREDENTIALS_DIR
from tandem_operator.etcd_accounts import account_name
from tandem_phases.store import Store

WITHIN = 30.0


class Case(NamedTuple):
    """``sign``: what Kubernetes writes somewhere once it knows. ``words``: what the user is told."""

    spec: dict[str, Any]
    sign: str
    reason: str
    words: tuple[str, ...]


def mounting(volume: dict[str, Any]) -> dict[str, Any]:
    return tiny(
        trainer={"volumeMounts": [{"name": "mine", "mountPath": "/mine"}]},
        pod={"volumes": [{"name": "mine", **volume}]},
    )


CASES = {
    "a failing pull": Case(
        merged(tiny(), {"trainer": {"image": "tandem.invalid/none:1"}}),
        "ErrImagePull",
        "ImagePullFailed",
        ("Container trainer of pod sums-hybrid-0", "tandem.invalid/none:1", "Check the image's name"),
    ),
    "a missing volume": Case(
        mounting({"persistentVolumeClaim": {"claimName": "models"}}),
        'persistentvolumeclaim \\"models\\" not found',
        "MissingVolume",
        ("sums-hybrid-0", "PersistentVolumeClaim models", "create it or name another"),
    ),
    "a missing config map": Case(
        mounting({"configMap": {"name": "prompts"}}),
        'configmap \\"prompts\\" not found',
        "MissingVolume",
        ("sums-hybrid-0", '"prompts" not found', "Create what is missing"),
    ),
    "a missing storage class": Case(
        merged(tiny(), {"orchestrator": {"storageClassName": "no-such-class"}}),
        "no-such-class",
        "MissingVolume",
        ("sums-orchestrator", "no-such-class", "StorageClass"),
    ),
    "an unschedulable pod": Case(
        tiny(pod={"nodeSelector": {"no": "such"}}),
        "node affinity/selector",
        "Unschedulable",
        ("sums-hybrid-0", "cannot be placed", "node affinity/selector"),
    ),
    "a crash-looping trainer": Case(
        tiny(trainer={"command": FAILING}),
        "CrashLoopBackOff",
        "CrashLoop",
        ("Container trainer of pod sums-hybrid-0", "exit code", "kubectl logs sums-hybrid-0", "-c trainer --previous"),
    ),
    "a program that is not in the image": Case(
        tiny(trainer={"command": ["/no/such/program"]}),
        "StartError",
        "ContainerRefused",
        ("Container trainer of pod sums-hybrid-0", "/no/such/program"),
    ),
    "pods that break the namespace's profile": Case(
        tiny(pod={"hostNetwork": True}), "violates PodSecurity", "PodsRefused", ("sums-hybrid", "hostNetwork")
    ),
    "a field that no pod has": Case(tiny(pod={"nope": 1}), "", "ObjectsRefused", ("API server refused", "nope")),
}


async def until_kubernetes_knows(world: World, sign: str) -> None:
    """Some pod, or an Event about something else than the RLJob, says it."""

    async def look() -> bool:
        events, _ = await world.cluster.list(Selection(EVENT, world.namespace))
        others = [event for event in events if event["involvedObject"]["kind"] != "RLJob"]
        pods = [*await world.pods(), *await world.pods("orchestrator")]
        return sign in json.dumps([*others, *pods])

    await eventually(look)


async def told(world: World, reason: str, words: tuple[str, ...] = ()) -> dict[str, Any]:
    """The Event of this reason, with these words, on the RLJob."""

    async def look() -> dict[str, Any] | None:
        found = [event for event in await world.events() if event["reason"] == reason]
        return next((event for event in found if all(word in event["message"] for word in words)), None)

    try:
        return await eventually(look)
    except TimeoutError:
        raise AssertionError(f"no Event {reason} with {words}: {await world.events()}") from None


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_trouble_is_a_condition_and_an_event_within_30_seconds(
    case: Case, world: World, operator: OperatorProcess
) -> None:
    await world.submit(**case.spec)
    await until_kubernetes_knows(world, case.sign)
    degraded = await world.until_condition("sums", "Degraded", case.reason, WITHIN, case.words)
    assert degraded["status"] == "True"
    event = await told(world, case.reason, case.words)
    assert event["type"] == "Warning"


async def test_what_the_orchestrator_finds_wrong_at_its_start_fails_the_job_without_a_crash_loop(
    world: World, operator: OperatorProcess
) -> None:
    spec = tiny()
    (orchestrator,) = spec["orchestrator"]["template"]["spec"]["containers"]
    # The image has no program that writes its last words; its log takes their place.
    orchestrator |= {"command": FAILING, "terminationMessagePolicy": "FallbackToLogsOnError"}
    await world.submit(**spec)
    failed = await world.until_condition("sums", "Failed", "InvalidData")
    assert "no-such-flag" in failed["message"]

    async def gone() -> bool:
        return not [*await world.pods(), *await world.pods("orchestrator")]

    await eventually(gone)


@pytest_asyncio.fixture
async def operator_without_etcd(world: World, tmp_path: Path) -> AsyncIterator[OperatorProcess]:
    """Its etcd is an address that nobody listens on."""
    process = OperatorProcess(tmp_path, world.namespace, (f"127.0.0.1:{free_port()}",), "one")
    process.start()
    await eventually(process.ready)
    yield process
    await process.stop()
    print(process.log)


async def test_an_etcd_that_was_never_there_is_told_within_30_seconds(
    world: World, operator_without_etcd: OperatorProcess
) -> None:
    await world.submit()
    degraded = await world.until_condition("sums", "Degraded", "EtcdUnreachable", WITHIN)
    assert "goes on when etcd is back" in degraded["message"]
    assert (await told(world, "EtcdUnreachable"))["type"] == "Warning"
    assert await world.planned(), "what can be made without etcd is made"


async def test_an_etcd_that_goes_away_is_told_and_its_return_too(
    world: World, operator: OperatorProcess, etcd: EtcdServer
) -> None:
    await world.submit()
    await world.planned()
    etcd.stop()
    await world.until_condition("sums", "Degraded", "EtcdUnreachable", WITHIN)
    etcd.start()

    async def back() -> bool:
        found = await world.condition("sums", "Degraded")
        return found is not None and found["reason"] != "EtcdUnreachable"

    await eventually(back)


async def test_an_etcd_that_comes_back_empty_has_the_accounts_of_running_jobs_again(
    world: World, etcd: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for name, text in (("username", "root"), ("password", "r00t")):
        (credentials / name).write_text(text)
    monkeypatch.setenv(CREDENTIALS_DIR, str(credentials))
    settings = {"endpoints": etcd.endpoints, "auth": True}
    process = OperatorProcess(tmp_path, world.namespace, etcd.endpoints, "one", etcd=settings)
    process.start()
    await eventually(process.ready)
    await world.submit(**tiny())
    keys = await world.keys("sums")
    secret = Kind("v1", "Secret")

    async def reaches_its_keys() -> bool:
        found = await world.cluster.get(secret, world.namespace, "sums-secrets")
        if found is None:
            return False
        password = base64.b64decode(found["data"]["etcd-password"]).decode()
        async with Store(etcd.endpoints, account_name(keys.uid), password, timeout=2.0) as store:
            try:
                await store.get(keys.phase)
            except TryAgain:
                return False
        return True

    await eventually(reaches_its_keys)
    etcd.stop()
    etcd.wipe()
    etcd.start()
    await eventually(reaches_its_keys)
    await process.stop()
