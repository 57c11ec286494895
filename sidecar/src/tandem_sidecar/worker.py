# SPDX-License-Identifier: Apache-2.0
"""Follows the job's phase: does this member's part of each, and acks it."""

import asyncio
from collections.abc import Mapping

import structlog

from tandem_api.errors import Fenced, MemberFailed, TryAgain
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import Ack, Member, PhaseName, WeightsRecord
from tandem_phases.membership import Membership, join
from tandem_phases.mirror import Mirror
from tandem_phases.phase import SeenPhase, current
from tandem_phases.store import Entry, Store
from tandem_sidecar.metrics import MemberMetrics
from tandem_sidecar.steps import Part
from tandem_sidecar.switch import Switch

log = structlog.get_logger()

LEASE_SECONDS = 10.0
_RETRY_SECONDS = 1.0


class Worker:
    """One member of a job.

    Two tasks: one keeps our place among the members, the other does our part of each phase. Work goes on while the
    place is lost, for etcd may only be away; an ack is written with the place that we have by then.

    Invariant: it works on at most one phase at a time, and begins none without a place. An ack is only ever written
    for the phase that the work was begun for. When the phase moves on under its hands, the work is cancelled.
    """

    def __init__(self, store: Store, keys: JobKeys, member: Member, switch: Switch, metrics: MemberMetrics) -> None:
        self._store = store
        self._keys = keys
        self._member = member
        self._metrics = metrics
        self._place: Membership | None = None
        self._placed = asyncio.Event()
        self._parts = {
            PhaseName.START: switch.start,
            PhaseName.RECOVER: switch.start,
            PhaseName.WARMUP: switch.warmup,
            PhaseName.ROLLOUT: switch.rollout,
            PhaseName.RELEASE: switch.release,
            PhaseName.TRAIN: switch.train,
            PhaseName.HANDOFF: switch.handoff,
            PhaseName.SUSPENDED: switch.suspended,
            PhaseName.SUCCEEDED: switch.succeeded,
        }

    async def run(self) -> None:
        """Join, follow the phases, and join again whenever the membership is lost. Never returns.

        Raises:
            Fenced: another process has our place.
        """
        # Of the job's keys these two and no more: what the others write would reach every member, as often as there are
        # members.
        async with Mirror(self._store, self._keys.phase, self._keys.member(self._member.index)) as mirror:
            tasks = [
                asyncio.create_task(self._keep_place(mirror), name="keep our place"),
                asyncio.create_task(self._follow(mirror), name="follow the phases"),
            ]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task.done():
                        task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    async def _keep_place(self, mirror: Mirror) -> None:
        again = False
        while True:
            try:
                membership = await join(self._store, self._keys, self._member, LEASE_SECONDS, again=again)
            except TryAgain as error:
                log.warning("cannot join for now", error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            log.info("joined the job", index=self._member.index, again=again)
            again = True
            self._place = membership
            self._placed.set()
            await membership.over(mirror)
            self._placed.clear()
            log.warning("our membership is lost; joining again")

    async def _membership(self, mirror: Mirror) -> Membership:
        """Our place, once we have one that is in force."""
        while True:
            await self._placed.wait()
            assert self._place is not None
            if self._place.holds(mirror.entries):
                return self._place
            await asyncio.sleep(0)

    async def _follow(self, mirror: Mirror) -> None:
        epoch = 0
        while True:
            seen = await self._after(mirror, epoch)
            await self._membership(mirror)
            seen = current(mirror.entries, self._keys) or seen
            epoch = seen.record.epoch
            await self._take_part(mirror, seen)

    async def _take_part(self, mirror: Mirror, seen: SeenPhase) -> None:
        """Do our part and ack it, unless the phase moves on: then nobody waits for it."""
        record = seen.record
        log.info("phase", name=record.name, iteration=record.iteration, epoch=record.epoch)
        if record.name not in self._parts or self._member.index not in record.members:
            return
        self._metrics.works_on(record.name)
        working = asyncio.create_task(self._work(seen))
        moved = asyncio.create_task(self._after(mirror, record.epoch))
        acking: asyncio.Task[None] | None = None
        try:
            await asyncio.wait([working, moved], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                self._metrics.waits()
                acking = asyncio.create_task(self._keep_acked(mirror, seen, working.result()))
                await asyncio.wait([acking, moved], return_when=asyncio.FIRST_COMPLETED)
                if acking.done():
                    acking.result()
            elif record.name is not PhaseName.ROLLOUT:
                log.warning("our part of the phase is given up", name=record.name)
        finally:
            self._metrics.waits()
            tasks = [task for task in (working, moved, acking) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _after(self, mirror: Mirror, epoch: int) -> SeenPhase:
        """The first phase seen with a later epoch."""

        def later(entries: Mapping[str, Entry]) -> SeenPhase | None:
            seen = current(entries, self._keys)
            return seen if seen is not None and seen.record.epoch > epoch else None

        return await mirror.until(later)

    async def _work(self, seen: SeenPhase) -> Ack:
        record, part, error = seen.record, Part(), None
        try:
            await self._parts[record.name](record, part)
        except (MemberFailed, TryAgain) as failure:
            error = str(failure)
            log.error("our part of the phase failed", name=record.name, error=error)
        return part.ack(record.epoch, self._member.index, self._member.incarnation, error)

    async def _keep_acked(self, mirror: Mirror, seen: SeenPhase, ack: Ack) -> None:
        """Ack, and again whenever our place and the ack with it were lost; until the phase moves on."""
        while True:
            membership = await self._membership(mirror)
            try:
                await membership.ack(self._store, self._keys, ack, seen.fence, self._weights(seen, ack))
            except TryAgain as error:
                log.warning("our ack was not written; trying again", error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            except Fenced as error:
                log.warning("our ack does not count", error=str(error))
            await membership.over(mirror)

    def _weights(self, seen: SeenPhase, ack: Ack) -> dict[str, str]:
        """What the weights that we now serve are made of: the first member says so, with its ack."""
        if not ack.digest or self._member.index != 0:
            return {}
        record = WeightsRecord(
            version=seen.record.weight_version,
            digest=ack.digest,
            bytes=int(ack.measured["bytes"]),
            tensors=int(ack.measured["tensors"]),
        )
        return {self._keys.weights(record.version): record.wire()}
