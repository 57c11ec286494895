# SPDX-License-Identifier: Apache-2.0
"""A sidecar's place in its job, and its acks."""

from collections.abc import Mapping
from dataclasses import dataclass

from tandem_api.keys import JobKeys
from tandem_api.messages.phases import Ack, Member
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

    async def ack(self, store: Store, keys: JobKeys, ack: Ack, phase: Unchanged) -> None:
        """Write an ack for the phase as it was seen at ``phase``.

        Raises:
            Fenced: the phase moved on, or this membership is no longer valid. The ack does not count.
            TryAgain: etcd is away.
        """
        await store.commit((phase, self.fence), {keys.ack(ack.epoch, ack.index): ack.wire()}, self.lease)


async def join(store: Store, keys: JobKeys, member: Member, ttl: float) -> Membership:
    """Become the member of this index."""
    lease = await store.lease(ttl)
    written = await store.put(keys.member(member.index), member.wire(), lease)
    return Membership(member, lease, Unchanged(keys.member(member.index), written))


def members(entries: Mapping[str, Entry], keys: JobKeys) -> dict[int, Member]:
    """The members now, by index."""
    found = (Member.model_validate_json(entry.value) for key, entry in entries.items() if key.startswith(keys.members))
    return {member.index: member for member in found}


def acks(entries: Mapping[str, Entry], keys: JobKeys, epoch: int) -> dict[int, Ack]:
    """The acks of one epoch, by member index."""
    prefix = keys.acks(epoch)
    found = (Ack.model_validate_json(entry.value) for key, entry in entries.items() if key.startswith(prefix))
    return {ack.index: ack for ack in found}
