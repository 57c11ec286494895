# SPDX-License-Identifier: Apache-2.0
"""What is lost with a process, and what is not: the real driver, buffer and workers on a real etcd."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from etcd_server import EtcdServer, etcd_server
from scripted_pods import SOON, JobOfPods, Pod, fail, generate, hand_over, hoard, train

import tandem_orchestrator.driver
import tandem_sidecar.worker
from tandem_api.errors import Fenced
from tandem_api.messages.phases import Ack, Member, Outcome, PhaseName, PhaseRecord
from tandem_phases.barrier import counted
from tandem_phases.leadership import lead
from tandem_phases.membership import join
from tandem_phases.phase import move
from tandem_phases.store import Entry
from tandem_sidecar.steps import Part

P = PhaseName
HOUR = 3600.0
ZOMBIE = Member(index=0, pod="pod-0", uid="zombie", incarnation="zombie", address="127.0.0.1")


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
async def job(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[JobOfPods]:
    async with JobOfPods(tmp_path, etcd) as job:
        yield job


class Gate:
    """A part that is done once it is opened; it counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.inside = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, _: Pod, record: PhaseRecord, part: Part) -> None:
        self.begun += 1
        self.inside.set()
        await self.opened.wait()
        if record.name is P.TRAIN:
            part.measured["loss"] = 1.0


async def test_a_job_whose_pods_live_succeeds_in_its_first_world(job: JobOfPods) -> None:
    job.pod(0), job.pod(1)
    last = await asyncio.wait_for(job.drive(), SOON)
    assert (last.name, last.world, last.restarts) == (P.SUCCEEDED, 1, 0)


async def test_the_rollout_of_a_member_that_dies_goes_to_the_others_without_a_recovery(job: JobOfPods) -> None:
    job.pod(0)
    hoarder = job.pod(1, rollout=hoard)
    driving = job.drive()
    await asyncio.wait_for(job.hoarded.wait(), SOON)
    await hoarder.kill()
    await job.phase(P.RELEASE)
    job.pod(1)
    last = await asyncio.wait_for(driving, SOON)
    assert (last.name, last.world) == (P.SUCCEEDED, 1)
    assert P.RECOVER not in [record.name for record in await job.phases()]


async def test_the_rollout_of_a_process_that_came_for_a_lost_one_and_dies_too_goes_to_the_others(
    job: JobOfPods,
) -> None:
    waits = Gate()

    async def generate_later(pod: Pod, record: PhaseRecord, part: Part) -> None:
        await waits.opened.wait()
        await generate(pod, record, part)

    job.pod(0, rollout=generate_later)
    driving = job.drive()
    for _ in range(2):
        job.hoarded.clear()
        hoarder = job.pod(1, rollout=hoard)
        await asyncio.wait_for(job.hoarded.wait(), SOON)
        await hoarder.kill()
    waits.opened.set()
    await job.phase(P.RELEASE)
    job.pod(1)
    last = await asyncio.wait_for(driving, SOON)
    assert (last.name, last.world) == (P.SUCCEEDED, 1)


async def test_the_rollout_of_a_member_whose_engine_fails_goes_to_the_others(job: JobOfPods) -> None:
    job.pod(0)
    job.pod(1, rollout=fail)
    last = await asyncio.wait_for(job.drive(), SOON)
    assert (last.name, last.world) == (P.SUCCEEDED, 1)


async def test_a_rollout_without_any_member_left_recovers(job: JobOfPods) -> None:
    pods = [job.pod(index, rollout=hoard) for index in range(2)]
    driving = job.drive()
    await asyncio.wait_for(job.hoarded.wait(), SOON)
    for pod in pods:
        await pod.kill()
    job.pod(0), job.pod(1)
    last = await asyncio.wait_for(driving, SOON)
    assert (last.name, last.world, last.restarts) == (P.SUCCEEDED, 2, 1)


async def test_an_iteration_that_was_trained_is_in_the_metrics_though_its_handoff_failed(job: JobOfPods) -> None:
    failed: list[PhaseRecord] = []

    async def fail_once(pod: Pod, record: PhaseRecord, part: Part) -> None:
        if record.iteration == 1 and not failed:
            failed.append(record)
            await fail(pod, record, part)
        await hand_over(pod, record, part)

    job.pod(0, handoff=fail_once), job.pod(1)
    last = await asyncio.wait_for(job.drive(), SOON)
    assert (last.name, last.world) == (P.SUCCEEDED, 2)
    trained = [(line["iteration"], line["weightVersion"], line["loss"]) for line in job.run.metrics.lines[:2]]
    assert trained == [(0, 0, 1.0), (1, 1, 1.0)]


class Clock:
    """The module ``time`` as all of Tandem sees it here, with a wall clock that can be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._jump = 0.0
        ours = [module for name, module in sys.modules.items() if name.startswith("tandem_")]
        for module in ours:
            if getattr(module, "time", None) is time:
                monkeypatch.setattr(module, "time", self)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def time(self) -> float:
        return time.time() + self._jump

    def jump(self, seconds: float) -> None:
        self._jump += seconds


@pytest.mark.parametrize("seconds", [HOUR, -HOUR], ids=["forward", "back"])
async def test_a_clock_that_jumps_ends_no_phase_and_is_not_booked(
    job: JobOfPods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    clock, gate = Clock(monkeypatch), Gate()
    job.pod(0), job.pod(1, train=gate)
    driving = job.drive()
    await asyncio.wait_for(gate.inside.wait(), SOON)
    clock.jump(seconds)
    gate.opened.set()
    last = await asyncio.wait_for(driving, SOON)
    assert (last.name, last.world) == (P.SUCCEEDED, 1)
    timeline = (tmp_path / "state" / "timeline.jsonl").read_text()
    booked = [json.loads(line)["seconds"] for line in timeline.splitlines()]
    assert min(booked) >= 0.0
    assert max(booked) < SOON


async def test_a_clock_that_is_set_back_does_not_hide_a_member_that_hangs(
    etcd: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, hung = Clock(monkeypatch), asyncio.Event()

    async def hang_once(pod: Pod, record: PhaseRecord, part: Part) -> None:
        if not hung.is_set():
            hung.set()
            clock.jump(-HOUR)
            await asyncio.Event().wait()
        await train(pod, record, part)

    async with JobOfPods(tmp_path, etcd, schedule={"phaseDeadlines": {"train": "5s"}}) as job:
        job.pod(0), job.pod(1, train=hang_once)
        last = await asyncio.wait_for(job.drive(), SOON)
        reasons = [record.reason for record in await job.phases() if record.name is P.RECOVER]
    assert last.name is P.SUCCEEDED
    assert "Train passed its deadline; members [1] did not ack" in reasons


async def test_an_ack_of_a_process_that_was_replaced_does_not_end_the_phase(job: JobOfPods) -> None:
    gate, not_yet = Gate(), Gate()
    first = job.pod(0)
    job.pod(1, train=gate)
    driving = job.drive()
    training = await job.phase(P.TRAIN)
    await job.mirror.until(lambda entries: counted(entries, job.keys, training).get(0), SOON)
    first.task.cancel()
    # The ack of the first process stays until its lease runs out.
    job.pod(0, train=not_yet, recover=not_yet)
    await job.mirror.until(lambda entries: None if 0 in counted(entries, job.keys, training) else True, SOON)
    gate.opened.set()
    recovered = await job.phase(P.RECOVER)
    assert "member 0 was lost during Train" in (recovered.reason or "")
    not_yet.opened.set()
    last = await asyncio.wait_for(driving, SOON)
    assert last.name is P.SUCCEEDED


async def test_restarts_are_counted_on_when_another_orchestrator_takes_over(etcd: EtcdServer, tmp_path: Path) -> None:
    async with JobOfPods(tmp_path, etcd, runPolicy={"maxRestarts": 1}) as job:
        taken_over = Gate()
        job.pod(0, recover=taken_over), job.pod(1, train=fail)
        first = job.drive()
        recovered = await job.phase(P.RECOVER)
        assert recovered.restarts == 1
        first.cancel()
        await asyncio.wait([first])
        taken_over.opened.set()
        last = await asyncio.wait_for(job.drive(), SOON)
        assert last.name is P.FAILED
        assert "no restarts left: member 1: the script says so" in (last.reason or "")


def place_of(entries: Mapping[str, Entry], job: JobOfPods) -> int | None:
    """The revision at which the first member took its place, if it has one."""
    entry = entries.get(job.keys.member(0))
    return entry.modified if entry else None


async def test_work_goes_on_while_the_place_is_lost_and_is_acked_with_the_next_one(job: JobOfPods) -> None:
    gate = Gate()
    pod = job.pod(0, train=gate)
    leadership = await lead(job.store, job.mirror, job.keys, "test", 60)
    record = PhaseRecord(epoch=1, iteration=0, name=P.TRAIN, weight_version=0, world=1, members=(0,), started=0.0)
    await move(job.store, job.keys, leadership, None, record)
    await asyncio.wait_for(gate.inside.wait(), SOON)
    lost = pod.worker._place
    assert lost is not None
    await job.store.revoke(lost.lease.id)
    # It may have been taken again by now.
    await job.mirror.until(lambda entries: None if lost.fence.modified == place_of(entries, job) else True, SOON)
    gate.opened.set()
    found = await job.mirror.until(lambda entries: counted(entries, job.keys, record) or None, SOON)
    assert (found[0].outcome, gate.begun) == (Outcome.DONE, 1)
    await leadership.lease.revoke()


async def test_etcd_away_for_less_than_a_lease_costs_neither_work_nor_a_lease(
    job: JobOfPods, etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long etcd takes to start, that is less.
    for module in (tandem_orchestrator.driver, tandem_sidecar.worker):
        monkeypatch.setattr(module, "LEASE_SECONDS", 10 * SOON)
    gates, seen = (Gate(), Gate()), asyncio.Event()

    async def hand_over_once_seen(pod: Pod, record: PhaseRecord, part: Part) -> None:
        if record.iteration == 1:
            await seen.wait()
        await hand_over(pod, record, part)

    pods = [job.pod(index, train=gate, handoff=hand_over_once_seen) for index, gate in enumerate(gates)]
    driving = job.drive()
    for gate in gates:
        await asyncio.wait_for(gate.inside.wait(), SOON)
    before = await job.leases()
    etcd.stop()
    for gate in gates:
        gate.opened.set()
    etcd.start()
    handed = await job.phase(P.HANDOFF, iteration=1)
    assert (handed.world, [gate.begun for gate in gates]) == (1, [1, 1])
    assert await job.leases() == before
    seen.set()
    assert (await asyncio.wait_for(driving, SOON)).name is P.SUCCEEDED
    assert all(P.RECOVER not in pod.parts for pod in pods)


async def test_a_zombies_handoff_does_not_say_what_the_weights_are(job: JobOfPods) -> None:
    zombie = await join(job.store, job.keys, ZOMBIE, 60)
    leadership = await lead(job.store, job.mirror, job.keys, "test", 60)
    record = PhaseRecord(epoch=1, iteration=0, name=P.HANDOFF, weight_version=0, world=1, members=(0,), started=0.0)
    seen = await move(job.store, job.keys, leadership, None, record)
    await move(job.store, job.keys, leadership, seen, record.model_copy(update={"epoch": 2}))
    ack = Ack(epoch=1, index=0, incarnation="zombie", outcome=Outcome.DONE, seconds=0.0, digest="stale")
    with pytest.raises(Fenced):
        await zombie.ack(job.store, job.keys, ack, seen.fence, {job.keys.weights(0): "stale"})
    assert await job.store.get(job.keys.weights(0)) is None
    for proof in (leadership, zombie):
        await proof.lease.revoke()


async def test_old_acks_do_not_pile_up_in_etcd(job: JobOfPods) -> None:
    job.pod(0), job.pod(1)
    last = await asyncio.wait_for(job.drive(), SOON)
    entries, _ = await job.store.list(job.keys.prefix + "acks/")
    epochs = {int(key.removeprefix(job.keys.prefix).split("/")[1]) for key in entries}
    assert epochs <= {last.epoch, last.epoch - 1}
