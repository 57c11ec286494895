# SPDX-License-Identifier: Apache-2.0
"""Two ways to have an operator: the chart, installed, or a process of this tree with an etcd of its own."""

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import kopf
import pytest
import pytest_asyncio
from etcd_server import EtcdServer, etcd_server
from kubectl import CHART, ETCD, KUBECONFIG, RELEASE, SYSTEM, TEST_ETCD, helm, kubectl
from operator_process import OperatorProcess, World
from waiting import eventually

from tandem_api.schema import crd
from tandem_operator import cluster as api
from tandem_operator.cluster import POD, Cluster, Kind, Selection
from tandem_phases.store import Store

NAMESPACE = Kind("v1", "Namespace")
INSTALLED = "app.kubernetes.io/name=tandem,app.kubernetes.io/component=operator"


def login() -> kopf.ConnectionInfo:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", KUBECONFIG)
        found = kopf.login_with_kubeconfig(settings=kopf.OperatorSettings())
    assert found is not None
    return found


@pytest.fixture(scope="module")
def installed(request: pytest.FixtureRequest) -> Iterator[None]:
    """The chart with its bundled etcd, of as many members as a module says; TLS to it, and between a job's pods."""
    members = getattr(request.module, "ETCD_MEMBERS", 1)
    helm(
        *("install", RELEASE, str(CHART), "-n", SYSTEM, "--create-namespace", "--take-ownership"),
        *("--wait", "--timeout", "5m", *TEST_ETCD),
        *("--set", f"etcd.replicas={members},etcd.tls.enabled=true,jobs.tls.enabled=true"),
    )
    yield
    helm("uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "5m", "--ignore-not-found")
    # etcd's volumes outlive the release, and the next one may have another number of members.
    kubectl("delete", "pvc", "-n", SYSTEM, "-l", ETCD)


@pytest.fixture(scope="module")
def namespace(installed: None) -> Iterator[str]:
    """One of its own beside the installed chart; what was in it is printed at the end."""
    name = f"recovery-{uuid.uuid4().hex[:6]}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    print(kubectl("get", "pods,rljobs,events", "-n", name, "-o", "wide"))
    kubectl("delete", "namespace", name, "--wait=true", "--timeout=5m")


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path) as running:
        yield running


@pytest_asyncio.fixture
async def world(etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A namespace of its own, under the restricted profile."""
    monkeypatch.setitem(api.PLURALS, "CustomResourceDefinition", "customresourcedefinitions")
    monkeypatch.setitem(api.PLURALS, "Namespace", "namespaces")
    monkeypatch.setitem(api.PLURALS, "ResourceClaim", "resourceclaims")
    name = f"operator-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    async with Cluster(login) as cluster, Store(etcd.endpoints, timeout=2.0) as store:
        others, _ = await cluster.list(Selection(POD, labels=INSTALLED))
        assert not others, "the operator that is installed in this cluster would work at these jobs: helm uninstall it"
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
async def operator(
    request: pytest.FixtureRequest, world: World, etcd: EtcdServer, tmp_path: Path
) -> AsyncIterator[OperatorProcess]:
    """One replica that runs, undisturbed unless the parameter is ``killed``."""
    process = OperatorProcess(tmp_path, world.namespace, etcd.endpoints, "one")
    process.start()
    await eventually(process.ready)
    if getattr(request, "param", "undisturbed") == "killed":
        process.kill_at_a_random_moment(request.node.nodeid)
    yield process
    await process.stop()
    print(process.log)
