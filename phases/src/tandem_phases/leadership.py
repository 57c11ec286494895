# SPDX-License-Identifier: Apache-2.0
"""One orchestrator at a time moves a job."""

from dataclasses import dataclass

from tandem_api.errors import Fenced, TryAgain
from tandem_api.keys import JobKeys
from tandem_phases.mirror import Mirror
from tandem_phases.store import Lease, SameHolder, Store, Unchanged


@dataclass(frozen=True, slots=True)
class Leadership:
    """Proof of leadership: the leader key as we created it. It holds until ``lease.lost``."""

    lease: Lease
    fence: SameHolder


async def lead(store: Store, mirror: Mirror, keys: JobKeys, identity: str, ttl: float) -> Leadership:
    """Wait until nobody leads the job, then lead it.

    ``mirror`` must cover the job's prefix.

    Raises:
        TryAgain: etcd went away meanwhile. What was written is taken back, as far as etcd can be asked.
    """
    while True:
        await mirror.until(lambda entries: None if keys.leader in entries else True)
        lease = await store.lease(ttl)
        try:
            created = await store.commit((Unchanged(keys.leader, 0),), {keys.leader: identity}, lease)
        except Fenced:
            await lease.revoke()
            continue
        except TryAgain:
            await lease.revoke()
            raise
        return Leadership(lease, SameHolder(keys.leader, created))
