# SPDX-License-Identifier: Apache-2.0
"""Faults for a job on a cluster: what runs in its containers is what runs there, phases come from a real etcd."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from etcd_server import EtcdServer, etcd_server
from fake_cluster import FakeCluster, Sandbox, fake_cluster, state_of
from operator_fixture import manifest
from scripted_pods import JobOfPods, Pod
from waiting import reached

from tandem_api import environment as names
from tandem_api.messages.phases import PhaseName, PhaseRecord
from tandem_cli.chaos.cluster import ClusterJob, attached_to
from tandem_cli.chaos.injector import Injector
from tandem_cli.chaos.place import NotDone, Seen
from tandem_cli.chaos.plan import Component, Fault, Kind
from tandem_sidecar.steps import Part

P = PhaseName
SOON = 120.0
LASTING = 10
ENGINE, TRAINER = ("vllm.entrypoints.openai.api_server",), ("-m", "tandem_trainer")


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path_factory.mktemp("etcd")) as server:
        yield server


async def once_for_ever(_: Pod, record: PhaseRecord, __: Part) -> None:
    """One iteration of the first world trains until it is given up."""
    await asyncio.sleep(0.1)
    if (record.world, record.iteration) == (1, LASTING):
        await asyncio.Event().wait()


@pytest.fixture
async def pods(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[JobOfPods]:
    """A job of two pods that goes through its phases for long."""
    async with JobOfPods(tmp_path, etcd, iterations=500) as job:
        for index in range(2):
            job.pod(index, train=once_for_ever)
        job.drive()
        yield job


@pytest.fixture
def words(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return getattr(request, "param", ENGINE)


@pytest.fixture
def cluster(pods: JobOfPods, words: tuple[str, ...], tmp_path: Path) -> Iterator[tuple[FakeCluster, Sandbox]]:
    (tmp_path / "token").write_text("a-token")
    job = tmp_path / "job.json"
    job.write_text(pods.job.dump().replace('"name": "test"', f'"name": "{pods.keys.name}"', 1))
    environment = {
        names.JOB_FILE: str(job),
        names.SECRETS_DIR: str(tmp_path),
        names.ETCD_ENDPOINTS: ",".join(pods.endpoints),
        "LOCAL_RANK": "0",
    }
    raw = manifest()
    raw["spec"] |= {"hybrid": {"replicas": 2}}
    with fake_cluster(raw, words, environment) as made:
        yield made


@pytest.fixture
async def job(cluster: tuple[FakeCluster, Sandbox]) -> AsyncIterator[ClusterJob]:
    async with attached_to(cluster[0], "sums") as job:  # type: ignore[arg-type]
        yield job


async def inflict(job: ClusterJob, fault: Fault) -> Any:
    return await asyncio.wait_for(Injector(job, patience=SOON).inflict(fault), 2 * SOON)


async def test_a_member_loses_its_lease_in_the_phase_that_is_watched(job: ClusterJob) -> None:
    def trains(seen: Seen) -> bool | None:
        return (seen.record.name, seen.record.iteration) == (P.TRAIN, LASTING) or None

    await job.until(trains, SOON)
    async with job.armed(Fault(Kind.LOSE_LEASE, Component.SIDECAR, P.TRAIN, 1)) as armed:
        await armed.strike()
    # Nothing else ends that phase.
    await job.until(lambda seen: seen.record.world > 1 or None, SOON)


async def test_phases_are_watched_again_when_etcd_was_away(job: ClusterJob, etcd: EtcdServer) -> None:
    epoch = await job.until(lambda seen: seen.record.epoch, SOON)
    await asyncio.to_thread(etcd.stop)
    await asyncio.to_thread(etcd.start)
    await job.until(lambda seen: seen.record.epoch > epoch + 1 or None, SOON)


async def test_an_engine_is_killed_within_its_container_and_nothing_else(
    job: ClusterJob, cluster: tuple[FakeCluster, Sandbox]
) -> None:
    _, sandbox = cluster
    async with job.armed(Fault(Kind.KILL, Component.ENGINE, P.ROLLOUT)) as armed:
        await reached(lambda: state_of(sandbox.child) == "S", SOON, "the engine's sleep")
        await armed.strike()
        await armed.over()
    await reached(lambda: state_of(sandbox.child) in "ZX", SOON, "the end of the engine")


@pytest.mark.parametrize("words", [TRAINER], indirect=True)
async def test_a_stopped_trainer_goes_on_when_the_connection_ends(
    job: ClusterJob, cluster: tuple[FakeCluster, Sandbox]
) -> None:
    _, sandbox = cluster
    async with job.armed(Fault(Kind.STOP, Component.TRAINER, P.TRAIN, seconds=300.0)) as armed:
        await armed.strike()
        await reached(lambda: state_of(sandbox.child) == "T", SOON, "the stop")
    await reached(lambda: state_of(sandbox.child) == "S", SOON, "the trainer goes on")


async def test_a_fault_that_ends_its_container_is_over(job: ClusterJob, cluster: tuple[FakeCluster, Sandbox]) -> None:
    """As running out of memory does where process 1 is the target, or where the kernel kills whole control groups."""
    _, sandbox = cluster
    async with job.armed(Fault(Kind.STOP, Component.ENGINE, P.ROLLOUT, seconds=300.0)) as armed:
        await armed.strike()
        os.kill(sandbox.first, signal.SIGKILL)
        await asyncio.wait_for(armed.over(), SOON)


async def test_a_container_without_a_limit_does_not_run_out_of_memory(job: ClusterJob) -> None:
    with pytest.raises(NotDone, match="the container has no memory limit"):
        await inflict(job, Fault(Kind.OUT_OF_MEMORY, Component.ENGINE, P.TRAIN))


async def test_the_disk_of_the_node_is_not_filled(job: ClusterJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tandem_cli.chaos.cluster._STATE", "/")
    with pytest.raises(NotDone, match="others' disk would be full as well"):
        await inflict(job, Fault(Kind.FILL_DISK, Component.ORCHESTRATOR, P.TRAIN, seconds=1.0))


@pytest.mark.parametrize("component", [Component.POD, Component.ORCHESTRATOR])
async def test_a_whole_pod_is_deleted(
    job: ClusterJob, cluster: tuple[FakeCluster, Sandbox], component: Component
) -> None:
    async with job.armed(Fault(Kind.KILL, component, P.TRAIN)) as armed:
        await armed.strike()
    assert cluster[0].deleted == [f"{'hybrid' if component is Component.POD else component}-pod"]


async def test_what_a_cluster_cannot_do_is_refused_by_name(job: ClusterJob) -> None:
    faults = (
        Fault(Kind.KILL, Component.ETCD, P.TRAIN),
        Fault(Kind.KILL, Component.SIDECAR, P.TRAIN),
        Fault(Kind.STOP, Component.ORCHESTRATOR, P.TRAIN, seconds=1.0),
        Fault(Kind.PARTITION, Component.POD, P.TRAIN, seconds=1.0),
        Fault(Kind.CORRUPT_SEGMENT, Component.TRAINER, P.HANDOFF),
        Fault(Kind.KILL, Component.ENGINE, P.TRAIN, 2),
        Fault(Kind.KILL, Component.ENGINE, P.TRAIN),
    )
    refused = await job.refusals(faults)
    assert [problem.where for problem in refused] == sorted({fault.what for fault in faults[:-1]})
