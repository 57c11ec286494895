# SPDX-License-Identifier: Apache-2.0
"""Two replicas, one leader: the Lease decides, also when a leader is killed, told to stop, or robbed of it."""

import signal
from pathlib import Path
from typing import Any

from etcd_server import EtcdServer
from operator_process import OperatorProcess, World
from waiting import DEADLINE, eventually

from tandem_operator.cluster import LEASE, Refused


async def test_when_the_leader_is_killed_the_other_replica_goes_on(
    world: World, operator: OperatorProcess, etcd: EtcdServer, tmp_path: Path
) -> None:
    await world.submit("first")
    await world.planned("first")
    second = OperatorProcess(tmp_path, world.namespace, etcd.endpoints, "two")
    second.start()
    try:
        await eventually(second.ready)
        assert "tandem_operator_leader 0.0" in second.metrics()
        await operator.stop(signal.SIGKILL)
        await world.submit("second")
        await world.planned("second")
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
