# SPDX-License-Identifier: Apache-2.0
"""A sidecar's place in its job, and its acks."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from tandem_api.errors import Fenced, TryAgain
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import Ack, Member
from tandem_phases.mirror import Mirror
from tandem_phases.store import Entry, Lease, Store, Unchanged


@dataclass(frozen=True, slots=True)
class Membership:
    """Proof of membership: our member key as we wrote it. It holds until ``lease.lost``.

    Joining replaces an older incarnation of the same index: Kubernetes never runs two pods of one index, so the older
    one is gone or a zombie, and its acks no longer count.
    """

    member: Member
    lease: Lease
    fence: Unchanged

    async def ack(
        self, store: Store, keys: JobKeys, ack: Ack, phase: Unchanged, lasting: Mapping[str, str] | None = None
    ) -> None:
        """Write an ack for the phase as it was seen at ``phase``, and with it keys that outlive this membership.

        Raises:
            Fenced: the phase moved on, or this membership is no longer valid. The ack does not count.
            TryAgain: etcd is away.
        """
        place = keys.ack(ack.epoch, ack.index)
        await store.commit((phase, self.fence), {place: ack.wire()}, self.lease, lasting=lasting)

    def holds(self, entries: Mapping[str, Entry]) -> bool:
        """Whether this membership is in force, as far as the mirror's entries tell."""
        entry = entries.get(self.fence.key)
        return not self.lease.lost.is_set() and (entry is None or entry.modified <= self.fence.modified)

    async def over(self, mirror: Mirror) -> None:
        """Returns when this membership holds no longer: its lease is lost, or another process has the place."""

        def replaced(entries: Mapping[str, Entry]) -> bool | None:
            return None if self.holds(entries) else True

        ends = [asyncio.create_task(self.lease.lost.wait()), asyncio.create_task(mirror.until(replaced))]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ends:
                task.cancel()


async def join(store: Store, keys: JobKeys, member: Member, ttl: float, *, again: bool = False) -> Membership:
    """Become the member of this index.

    A process that starts takes the place from whoever has it. One that had it and joins ``again`` takes it back only
    from itself or from nobody: it may have been replaced while it was cut off.

    Raises:
        Fenced: another incarnation has the place; this process is a zombie and should end.
        TryAgain: etcd is away.
    """
    key = keys.member(member.index)
    lease = await store.lease(ttl)
    try:
        if not again:
            return Membership(member, lease, Unchanged(key, await store.put(key, member.wire(), lease)))
        expected = _own_place(await store.get(key), key, member)
        return Membership(member, lease, Unchanged(key, await store.commit((expected,), {key: member.wire()}, lease)))
    except (Fenced, TryAgain):
        await lease.revoke()
        raise


def _own_place(found: Entry | None, key: str, member: Member) -> Unchanged:
    if found is None:
        return Unchanged(key, 0)
    holder = found.read(Member)
    if holder.incarnation != member.incarnation:
        raise Fenced(f"{key}: {holder.pod} ({holder.incarnation}) has taken the place of {member.incarnation}")
    return Unchanged(key, found.modified)


def members(entries: Mapping[str, Entry], keys: JobKeys) -> dict[int, Member]:
    """The members now, by index."""
    prefix = keys.members
    found = (entry.read(Member) for key, entry in entries.items() if key.startswith(prefix))
    return {member.index: member for member in found}


def acks(entries: Mapping[str, Entry], keys: JobKeys, epoch: int) -> dict[int, Ack]:
    """The acks of one epoch, by member index."""
    prefix = keys.acks(epoch)
    found = (entry.read(Ack) for key, entry in entries.items() if key.startswith(prefix))
    return {ack.index: ack for ack in found}
