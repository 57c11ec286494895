# SPDX-License-Identifier: Apache-2.0
"""Leadership, membership and fencing against a real etcd."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from etcd_proxy import EtcdProxy
from etcd_server import EtcdServer, etcd_server
from waiting import DEADLINE as SOON

from tandem_api.errors import Fenced, TryAgain
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import Ack, Member, Outcome, PhaseName, PhaseRecord
from tandem_phases.leadership import Leadership, lead
from tandem_phases.membership import Membership, acks, join, members
from tandem_phases.mirror import Mirror
from tandem_phases.phase import SeenPhase, current, move
from tandem_phases.store import Store, Unchanged

KEYS = JobKeys("default", "job", "uid-1")
TTL = 60.0
SHORT_TTL = 8.0
JOBS_TTL = 10.0


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
async def store(etcd: EtcdServer, stack: AsyncExitStack) -> Store:
    store = await stack.enter_async_context(Store(etcd.endpoints))
    await store.delete_prefix(KEYS.prefix)
    return store


@pytest.fixture
async def mirror(store: Store, stack: AsyncExitStack) -> Mirror:
    return await stack.enter_async_context(Mirror(store, KEYS.prefix))


def member(index: int, incarnation: str = "a") -> Member:
    return Member(index=index, pod=f"job-{index}", uid=f"u{index}", incarnation=incarnation, address="127.0.0.1")


def record(epoch: int, name: PhaseName = PhaseName.ROLLOUT) -> PhaseRecord:
    return PhaseRecord(
        epoch=epoch, iteration=0, name=name, weight_version=0, world=1, members=(0, 1), started=float(epoch)
    )


def ack(epoch: int, index: int = 0) -> Ack:
    return Ack(epoch=epoch, index=index, incarnation="a", outcome=Outcome.DONE, seconds=0.1)


async def moved(store: Store, leadership: Leadership, epoch: int, previous: SeenPhase | None = None) -> SeenPhase:
    return await move(store, KEYS, leadership, previous, record(epoch))


async def test_a_second_orchestrator_waits_until_the_first_one_is_gone(store: Store, mirror: Mirror) -> None:
    first = await lead(store, mirror, KEYS, "first", TTL)
    second = asyncio.create_task(lead(store, mirror, KEYS, "second", TTL))
    await mirror.until(lambda entries: KEYS.leader in entries or None, SOON)
    assert not second.done()
    await first.lease.revoke()
    took_over = await asyncio.wait_for(second, SOON)
    assert took_over.fence.created > first.fence.created
    await took_over.lease.revoke()


async def test_an_orchestrator_that_lost_its_leadership_cannot_move_the_phase(store: Store, mirror: Mirror) -> None:
    old = await lead(store, mirror, KEYS, "old", TTL)
    seen = await moved(store, old, 1)
    await old.lease.revoke()
    new = await lead(store, mirror, KEYS, "new", TTL)
    with pytest.raises(Fenced):
        await moved(store, old, 2, seen)
    assert (await moved(store, new, 2, seen)).record.epoch == 2
    await new.lease.revoke()


async def test_a_leader_that_did_not_see_the_last_move_cannot_move_the_phase(store: Store, mirror: Mirror) -> None:
    leader = await lead(store, mirror, KEYS, "leader", TTL)
    first = await moved(store, leader, 1)
    await moved(store, leader, 2, first)
    with pytest.raises(Fenced):
        await moved(store, leader, 3, first)
    await leader.lease.revoke()


async def test_an_ack_for_a_phase_that_has_moved_on_does_not_count(store: Store, mirror: Mirror) -> None:
    leader = await lead(store, mirror, KEYS, "leader", TTL)
    zombie = await join(store, KEYS, member(0), TTL)
    old = await moved(store, leader, 1)
    new = await moved(store, leader, 2, old)
    with pytest.raises(Fenced):
        await zombie.ack(store, KEYS, ack(1), old.fence)
    await zombie.ack(store, KEYS, ack(2), new.fence)
    found = await mirror.until(lambda entries: acks(entries, KEYS, 2) or None, SOON)
    assert set(found) == {0}
    assert acks(mirror.entries, KEYS, 1) == {}
    await leader.lease.revoke()
    await zombie.lease.revoke()


async def test_an_ack_of_an_older_incarnation_does_not_count(store: Store, mirror: Mirror) -> None:
    leader = await lead(store, mirror, KEYS, "leader", TTL)
    old = await join(store, KEYS, member(0, "old"), TTL)
    new = await join(store, KEYS, member(0, "new"), TTL)
    phase = await moved(store, leader, 1)
    with pytest.raises(Fenced):
        await old.ack(store, KEYS, ack(1), phase.fence)
    await new.ack(store, KEYS, ack(1), phase.fence)
    for proof in (leader, old, new):
        await proof.lease.revoke()


async def test_a_process_that_was_replaced_does_not_take_its_place_back(store: Store, mirror: Mirror) -> None:
    old = await join(store, KEYS, member(0, "old"), TTL)
    new = await join(store, KEYS, member(0, "new"), TTL)
    await asyncio.wait_for(old.over(mirror), SOON)
    with pytest.raises(Fenced, match="new"):
        await join(store, KEYS, member(0, "old"), TTL, again=True)
    assert (await mirror.until(lambda entries: members(entries, KEYS) or None, SOON))[0].incarnation == "new"
    for proof in (old, new):
        await proof.lease.revoke()


async def test_a_process_that_lost_its_lease_takes_its_place_back(store: Store, mirror: Mirror) -> None:
    first = await join(store, KEYS, member(0), SHORT_TTL)
    await store.revoke(first.lease.id)
    await asyncio.wait_for(first.over(mirror), SOON)
    second = await join(store, KEYS, member(0), TTL, again=True)
    assert second.fence.modified > first.fence.modified
    await second.lease.revoke()


async def test_a_member_that_stops_renewing_disappears_and_knows_it(store: Store, mirror: Mirror) -> None:
    membership = await join(store, KEYS, member(1), SHORT_TTL)
    await mirror.until(lambda entries: 1 in members(entries, KEYS) or None, SOON)
    await store.revoke(membership.lease.id)
    await asyncio.wait_for(membership.lease.lost.wait(), SOON)
    await mirror.until(lambda entries: 1 not in members(entries, KEYS) or None, SOON)


async def test_a_lease_counts_as_lost_once_its_time_has_passed_without_etcd(store: Store, etcd: EtcdServer) -> None:
    membership: Membership = await join(store, KEYS, member(2), 4.0)
    etcd.freeze()
    try:
        await asyncio.wait_for(membership.lease.lost.wait(), SOON)
    finally:
        etcd.thaw()


async def test_a_lease_and_a_mirror_outlive_a_member_of_etcd_that_hangs(
    etcd: EtcdServer, store: Store, stack: AsyncExitStack
) -> None:
    ways = [await stack.enter_async_context(EtcdProxy(etcd.endpoints[0])) for _ in range(3)]
    client = await stack.enter_async_context(Store(tuple(way.endpoints[0] for way in ways)))
    membership = await join(client, KEYS, member(3), JOBS_TTL)
    mirror = await stack.enter_async_context(Mirror(client, KEYS.prefix))
    (taken,) = (way for way in ways if way.taken)
    taken.block()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(membership.lease.lost.wait(), 1.5 * JOBS_TTL)
    await store.put(KEYS.progress, "news")
    await mirror.until(lambda entries: KEYS.progress in entries or None, SOON)
    assert 3 in members(mirror.entries, KEYS)
    await membership.lease.revoke()


async def test_a_mirror_catches_up_after_etcd_was_killed_and_came_back(
    store: Store, mirror: Mirror, etcd: EtcdServer
) -> None:
    await store.put(KEYS.progress, "before")
    await mirror.until(lambda entries: KEYS.progress in entries or None, SOON)
    etcd.stop()
    with pytest.raises(TryAgain):
        await store.get(KEYS.progress)
    assert mirror.entries[KEYS.progress].value == "before"
    etcd.start()
    async with Store(etcd.endpoints) as other:
        await other.put(KEYS.progress, "after")
    await mirror.until(lambda entries: entries[KEYS.progress].value == "after" or None, SOON)


async def test_a_commit_is_refused_when_the_key_exists_already(store: Store) -> None:
    await store.commit((Unchanged(KEYS.phase, 0),), {KEYS.phase: "a"})
    with pytest.raises(Fenced):
        await store.commit((Unchanged(KEYS.phase, 0),), {KEYS.phase: "b"})
    found = await store.get(KEYS.phase)
    assert found is not None
    assert found.value == "a"


async def test_the_current_phase_reads_back_as_it_was_written(store: Store, mirror: Mirror) -> None:
    leader = await lead(store, mirror, KEYS, "leader", TTL)
    written = await moved(store, leader, 7)
    seen = await mirror.until(lambda entries: current(entries, KEYS), SOON)
    assert seen == written
    await leader.lease.revoke()
