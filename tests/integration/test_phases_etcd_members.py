# SPDX-License-Identifier: Apache-2.0
"""A job on an etcd of three members stays in its world whatever becomes of one of them, be it the leader."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from etcd_members import EtcdMembers, etcd_members
from scripted_pods import SOON, JobOfPods, Pod, Script, generate, hand_over, train

from tandem_api.errors import TryAgain
from tandem_api.messages.phases import PhaseName, PhaseRecord
from tandem_phases.store import Store
from tandem_sidecar.steps import Part

P = PhaseName


async def nothing(_: Pod, __: PhaseRecord, ___: Part) -> None:
    return


PARTS: dict[PhaseName, Script] = {P.ROLLOUT: generate, P.RELEASE: nothing, P.TRAIN: train, P.HANDOFF: hand_over}


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMembers]:
    with etcd_members(tmp_path_factory.mktemp("etcd")) as running:
        yield running


def hand_over_leadership(etcd: EtcdMembers) -> None:
    etcd.hand_over()


def kill(etcd: EtcdMembers) -> None:
    """The leader is gone, and comes back once another one leads."""
    leader = etcd.leader()
    leader.kill()
    etcd.leader(without=leader)
    leader.start()


def hang(etcd: EtcdMembers) -> None:
    """The leader answers nobody any more; another one leads."""
    leader = etcd.leader()
    leader.freeze()
    etcd.leader(without=leader)


@pytest.mark.parametrize("phase", [P.ROLLOUT, P.RELEASE, P.TRAIN, P.HANDOFF])
@pytest.mark.parametrize("change", [hand_over_leadership, kill, hang])
async def test_a_job_goes_on_in_its_world_through_a_change_of_leader(
    change: Callable[[EtcdMembers], None], phase: PhaseName, etcd: EtcdMembers, tmp_path: Path, stack: AsyncExitStack
) -> None:
    changed = asyncio.Event()

    def after_change(then: Script) -> Script:
        """Pod 0 changes the leader, once; the other's part waits for it."""

        async def part(pod: Pod, record: PhaseRecord, part: Part) -> None:
            if pod is changing and not changed.is_set():
                await asyncio.to_thread(change, etcd)
                changed.set()
            await changed.wait()
            await then(pod, record, part)

        return part

    job = await stack.enter_async_context(JobOfPods(tmp_path, etcd))
    script = {phase.lower(): after_change(PARTS[phase])}
    changing, _ = job.pod(0, **script), job.pod(1, **script)
    try:
        last = await asyncio.wait_for(job.drive(), SOON)
    finally:
        for member in etcd.members:
            member.thaw()
    assert changed.is_set()
    assert (last.name, last.world, last.restarts) == (P.SUCCEEDED, 1, 0)


async def test_a_watch_on_a_member_that_hears_no_leader_breaks_instead_of_waiting_for_ever(
    etcd: EtcdMembers, stack: AsyncExitStack
) -> None:
    lonely, *others = etcd.members
    store = await stack.enter_async_context(Store(lonely.endpoints))
    changes = await stack.enter_async_context(store.watch("/any/", 0))
    for member in others:
        stack.callback(member.thaw)
        member.freeze()
    with pytest.raises(TryAgain, match="no leader"):
        await asyncio.wait_for(anext(changes), SOON)
