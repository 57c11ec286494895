# SPDX-License-Identifier: Apache-2.0
"""A run whose orchestrator is killed at fifty points finds its buffer whole each time, and goes on. One that is
asked to end says that the run has not ended with it."""

import asyncio
import json
import random
import signal
from pathlib import Path

import pytest
from etcd_server import etcd_server
from orchestrator_processes import SOON, HttpMember, Orchestrators, found_whole
from waiting import eventually

from tandem_phases.store import Store

POINTS = 50
MOST_HEARD = 14
LATEST = 0.03
ROLLOUT = {
    "promptsPerIteration": 3,
    "samplesPerPrompt": 2,
    "maxTokens": 32,
    "tokenBudget": 10,
    "overlapIterations": 4,
}


class Point:
    """The moment to kill at: so many answers and phases from now, and a little later."""

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator
        self._left = 0
        self._reached = asyncio.Event()

    def heard(self) -> None:
        self._left -= 1
        if self._left <= 0:
            self._reached.set()

    async def wait(self) -> None:
        self._left = self._generator.randint(1, MOST_HEARD)
        self._reached.clear()
        async with asyncio.timeout(SOON):
            await self._reached.wait()
        # In the middle of what the orchestrator does next.
        await asyncio.sleep(self._generator.uniform(0.0, LATEST))


@pytest.mark.timeout(900)
async def test_killed_at_fifty_points_of_a_run_it_loses_nothing_and_goes_on(tmp_path: Path):
    point = Point(random.Random(2501))
    parts = {"iterations": 1000, "rollout": ROLLOUT, "runPolicy": {"maxRestarts": 1000}}
    with etcd_server(tmp_path) as etcd:
        async with Orchestrators(tmp_path, etcd, **parts) as job, HttpMember(job, point.heard) as member:
            for _ in range(POINTS):
                await job.start()
                await point.wait()
                await job.kill()
                assert not member.task.done(), member.task.exception()
                found_whole(job.state, member.acknowledged)
            trained = len(member.batches)
            await job.start()
            await member.until(lambda phase, _: phase.iteration > trained + 1)
            await job.kill()
            found_whole(job.state, member.acknowledged)
    assert trained >= 5
    assert len(member.acknowledged) >= 2 * POINTS
    lines = [json.loads(line)["iteration"] for line in (job.state / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(len(lines)))
    assert len(lines) >= trained


async def test_one_whose_pod_is_deleted_does_not_count_as_done(tmp_path: Path) -> None:
    """Kubernetes would take exit code 0 for the end of the run, and start no other."""
    with etcd_server(tmp_path) as etcd:
        async with Orchestrators(tmp_path, etcd) as job, Store(etcd.endpoints) as store:
            await job.start()
            await eventually(lambda: store.get(job.keys.leader))
            assert await job.terminate() == 128 + signal.SIGTERM
