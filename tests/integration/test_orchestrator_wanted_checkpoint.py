# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that is wanted while a job runs: the real driver on a real etcd."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd_server import EtcdServer, etcd_server
from scripted_pods import SOON, JobOfPods

from tandem_api.messages.phases import Desired, DesiredState, PhaseName


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path) as server:
        yield server


async def test_a_wanted_checkpoint_is_saved_once_and_interrupts_nothing(etcd: EtcdServer, tmp_path: Path) -> None:
    async with JobOfPods(tmp_path, etcd, iterations=5, checkpoint={"everyIterations": 100}) as job:
        job.pod(0), job.pod(1)
        wish = Desired(state=DesiredState.RUNNING, checkpoint=2)
        await job.store.put(job.keys.desired, wish.wire())
        last = await asyncio.wait_for(job.drive(), SOON)
        phases = await job.phases()
    assert (last.name, last.world) == (PhaseName.SUCCEEDED, 1)
    trained = {record.iteration: record.save for record in phases if record.name is PhaseName.TRAIN}
    assert trained == {0: False, 1: True, 2: False, 3: False, 4: True}
