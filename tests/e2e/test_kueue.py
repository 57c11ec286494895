# SPDX-License-Identifier: Apache-2.0
"""Kueue itself decides when jobs start (`make e2e-kueue`, which builds it first)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubectl import kubectl
from kueue import API, kueue
from operator_process import OperatorProcess, World
from waiting import eventually

pytestmark = pytest.mark.kueue

_QUEUES = """
apiVersion: kueue.x-k8s.io/{api}
kind: ResourceFlavor
metadata: {{name: {namespace}}}
spec:
  nodeLabels: {{flavour: spot}}
---
apiVersion: kueue.x-k8s.io/{api}
kind: ClusterQueue
metadata: {{name: {namespace}}}
spec:
  namespaceSelector:
    matchLabels: {{kubernetes.io/metadata.name: {namespace}}}
  resourceGroups:
  - coveredResources: [pods]
    flavors:
    - name: {namespace}
      resources: [{{name: pods, nominalQuota: 1}}]
---
apiVersion: kueue.x-k8s.io/{api}
kind: LocalQueue
metadata: {{name: team, namespace: {namespace}}}
spec: {{clusterQueue: {namespace}}}
"""
"""A queue with room for one pod, on nodes of a flavour."""


@pytest.fixture
def queue(world: World, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Kueue runs; the labels of a job that waits in the namespace's queue."""
    with kueue(tmp_path) as log:
        kubectl("apply", "-f", "-", stdin=_QUEUES.format(api=API, namespace=world.namespace))
        yield {"kueue.x-k8s.io/queue-name": "team"}
    print(log.read_text())


async def test_kueue_starts_a_job_when_there_is_quota_and_what_is_suspended_gives_it_back(
    world: World, queue: dict[str, str], operator: OperatorProcess
) -> None:
    async def withdrawn() -> bool:
        return await world.get("batch/v1", "Job", "first-hybrid") is None

    await world.submit("first", labels=queue)
    await world.until_condition("first", "Suspended", "Running")
    admitted = await world.planned("first")
    assert admitted["spec"]["suspend"] is False
    assert admitted["spec"]["template"]["spec"]["nodeSelector"]["flavour"] == "spot"

    await world.submit("second", labels=queue)
    await world.until_condition("second", "Suspended", "Queued")
    await operator.settled()
    assert (await world.planned("second"))["spec"]["suspend"] is True

    await world.change("first", runPolicy={"suspend": True})
    await eventually(withdrawn)
    await world.until_condition("second", "Suspended", "Running")
    assert (await world.planned("second"))["spec"]["template"]["spec"]["nodeSelector"]["flavour"] == "spot"

    await world.change("first", runPolicy={"suspend": False})
    await world.until_condition("first", "Suspended", "Queued")
