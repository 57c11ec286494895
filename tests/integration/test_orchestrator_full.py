# SPDX-License-Identifier: Apache-2.0
"""A run whose volume has no room pauses, says so, loses nothing, and goes on when there is room."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from etcd_server import etcd_server
from orchestrator_processes import ENDLESS, HttpMember, Orchestrators, found_whole

from tandem_api.messages.phases import PhaseRecord, Progress

DEADLINE = 12.0
PARTS = {
    "iterations": 1000,
    "rollout": {"promptsPerIteration": 4, "samplesPerPrompt": 4, "maxTokens": 32},
    "schedule": {"phaseDeadlines": {"rollout": f"{DEADLINE:g}s"}},
}


def from_iteration(iteration: int) -> Callable[[PhaseRecord, Progress], bool]:
    return lambda phase, _: phase.iteration >= iteration


@pytest.mark.timeout(400)
async def test_a_full_volume_pauses_the_job_until_there_is_room(tmp_path: Path):
    seen: list[PhaseRecord] = []

    def paused(phase: PhaseRecord, progress: Progress) -> bool:
        seen.append(phase)
        return progress.buffer_full

    with etcd_server(tmp_path) as etcd:
        async with Orchestrators(tmp_path, etcd, **PARTS) as job, HttpMember(job) as member:
            await job.start()
            await member.until(from_iteration(2))
            job.room((job.state / "buffer.sqlite-wal").stat().st_size + 20_000)
            await member.until(paused)
            began = time.time()
            # Longer than a rollout may take: the time of the pause does not count.
            await member.until(lambda _, __: time.time() > began + DEADLINE + 2.0)
            trained = max(member.batches)
            assert trained <= seen[-1].iteration
            job.room(ENDLESS)
            await member.until(lambda phase, progress: phase.iteration > trained + 1 and not progress.buffer_full)
            await job.kill()
            found_whole(job.state, member.acknowledged)
    log = (tmp_path / "log").read_text()
    assert "nothing to train on" not in log
    assert "the replay buffer is full" in log + " ".join(member.refused)
    lines = [json.loads(line)["iteration"] for line in (job.state / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(len(lines)))
    assert len(lines) > trained


@pytest.mark.timeout(400)
async def test_an_orchestrator_that_starts_on_a_full_volume_waits_for_room(tmp_path: Path):
    with etcd_server(tmp_path) as etcd:
        async with Orchestrators(tmp_path, etcd, **PARTS) as job, HttpMember(job) as member:
            await job.start()
            await member.until(from_iteration(1))
            await job.kill()
            # Room for the write-ahead log's index, which is made anew, and not for more of the log.
            job.room(40_000)
            await job.start()
            await member.until(lambda _, progress: progress.buffer_full)
            trained = max(member.batches, default=0)
            job.room(ENDLESS)
            await member.until(from_iteration(trained + 2))
            await job.kill()
            found_whole(job.state, member.acknowledged)
