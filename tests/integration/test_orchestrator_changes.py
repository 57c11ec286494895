# SPDX-License-Identifier: Apache-2.0
"""What changes under a running orchestrator: the job's file, and the volume of its buffer. Real driver, real etcd."""

import asyncio
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from etcd_server import EtcdServer, etcd_server
from scripted_pods import SOON, JobOfPods, Pod

from tandem_api.environment import Job
from tandem_api.errors import MemberFailed
from tandem_api.messages.phases import PhaseName, PhaseRecord, Progress
from tandem_orchestrator.run import Run
from tandem_phases.phase import current
from tandem_phases.store import Entry
from tandem_sidecar.steps import Part


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path) as server:
        yield server


def written(job: Job, **changes: object) -> Job:
    """``job`` with ``changes`` of its spec, in its file."""
    assert job.file is not None
    changed = replace(job, spec=job.spec.model_copy(update=changes))
    job.file.write_text(changed.dump())
    return changed


async def test_iterations_that_are_raised_while_the_last_one_runs_are_done_as_well(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    async with JobOfPods(tmp_path, etcd, iterations=2) as job:
        job.job = replace(job.job, file=tmp_path / "job.json")
        written(job.job)

        async def raise_iterations(_: Pod, record: PhaseRecord, part: Part) -> None:
            part.measured["loss"] = 1.0
            if record.iteration == 1:
                written(job.job, iterations=4)

        job.pod(0, train=raise_iterations), job.pod(1)
        last = await asyncio.wait_for(job.drive(), SOON)
        phases = await job.phases()
    assert (last.name, last.iteration, last.world) == (PhaseName.SUCCEEDED, 4, 1)
    told = {record.iteration: record.iterations for record in phases if record.name is PhaseName.TRAIN}
    assert told == {0: 2, 1: 2, 2: 4, 3: 4}


async def test_a_job_whose_buffer_was_lost_goes_on_from_its_newest_checkpoint(etcd: EtcdServer, tmp_path: Path) -> None:
    async def die(_: Pod, record: PhaseRecord, part: Part) -> None:
        part.measured["loss"] = 1.0
        part.checkpoint = f"iter-{record.iteration + 1}"
        if record.iteration == 2:
            await asyncio.Event().wait()

    async def train_what_is_there(_: Pod, record: PhaseRecord, part: Part) -> None:
        if record.world == 1:
            raise MemberFailed("the orchestrator has no batch 2")
        part.measured["loss"] = 1.0

    async with JobOfPods(tmp_path, etcd, iterations=4) as job:
        pods = job.pod(0, train=die), job.pod(1)
        driving = job.drive()

        def dies_and_checkpoint_is_known(entries: Mapping[str, Entry]) -> bool | None:
            seen, progress = current(entries, job.keys), entries.get(job.keys.progress)
            dies = seen is not None and (seen.record.name, seen.record.iteration) == (PhaseName.TRAIN, 2)
            return (dies and progress is not None and progress.read(Progress).checkpoint_iteration == 2) or None

        await job.mirror.until(dies_and_checkpoint_is_known, SOON)
        driving.cancel()
        await asyncio.wait([driving])
        for pod in pods:
            await pod.kill()
        await job.run.stop()
        shutil.rmtree(tmp_path / "state")
        before = len(await job.phases())
        job.run = Run(job.job, tmp_path / "state")
        await job.run.prepare()
        job.pod(0, train=train_what_is_there), job.pod(1)
        last = await asyncio.wait_for(job.drive(), SOON)
        await job.run.stop()
        after = (await job.phases())[before:]
    assert (last.name, last.iteration) == (PhaseName.SUCCEEDED, 4)
    assert [found.checkpoint for found in after if found.name is PhaseName.RECOVER] == ["iter-2"]
    assert [found.iteration for found in after if found.name is PhaseName.TRAIN] == [2, 3]
