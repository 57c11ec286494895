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


class Worker:
    """One member of a job.

    Invariant: it works on at most one phase at a time, and an ack is only ever written for the phase that the work
    was begun for. When the phase moves on under its hands, the work is cancelled.
    """

    def __init__(self, store: Store, keys: JobKeys, member: Member, switch: Switch, metrics: MemberMetrics) -> None:
        self._store = store
        self._keys = keys
        self._member = member
        self._metrics = metrics
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
        again = False
        async with Mirror(self._store, self._keys.prefix) as mirror:
            while True:
                try:
                    membership = await join(self._store, self._keys, self._member, LEASE_SECONDS, again=again)
                    again = True
                    log.info("joined the job", index=self._member.index)
                    await self._follow(mirror, membership)
                except TryAgain as error:
                    log.warning("cannot join for now", error=str(error))
                    await asyncio.sleep(1.0)

    async def _follow(self, mirror: Mirror, membership: Membership) -> None:
        over = asyncio.create_task(membership.over(mirror))
        epoch = 0
        try:
            while True:
                moved = asyncio.create_task(self._after(mirror, epoch))
                await asyncio.wait([moved, over], return_when=asyncio.FIRST_COMPLETED)
                if over.done():
                    moved.cancel()
                    log.warning("our membership is lost; joining again")
                    return
                seen = moved.result()
                epoch = seen.record.epoch
                await self._take_part(mirror, membership, seen, over)
        finally:
            over.cancel()

    async def _take_part(
        self, mirror: Mirror, membership: Membership, seen: SeenPhase, over: asyncio.Task[None]
    ) -> None:
        """Do our part and ack it, unless the phase moves on or our membership is over: then nobody waits for it."""
        record = seen.record
        log.info("phase", name=record.name, iteration=record.iteration, epoch=record.epoch)
        if record.name not in self._parts or self._member.index not in record.members:
            return
        self._metrics.works_on(record.name)
        working = asyncio.create_task(self._work(seen))
        moved = asyncio.create_task(self._after(mirror, record.epoch))
        try:
            await asyncio.wait([working, moved, over], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await self._ack(membership, seen, working.result())
            elif record.name is not PhaseName.ROLLOUT:
                log.warning("our part of the phase is given up", name=record.name)
        finally:
            self._metrics.waits()
            for task in (working, moved):
                task.cancel()
            await asyncio.wait([working, moved])

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

    async def _ack(self, membership: Membership, seen: SeenPhase, ack: Ack) -> None:
        try:
            if ack.digest and self._member.index == 0:
                weights = WeightsRecord(
                    version=seen.record.weight_version,
                    digest=ack.digest,
                    bytes=int(ack.measured["bytes"]),
                    tensors=int(ack.measured["tensors"]),
                )
                await self._store.put(self._keys.weights(weights.version), weights.wire())
            await membership.ack(self._store, self._keys, ack, seen.fence)
        except Fenced as error:
            log.warning("our ack does not count", error=str(error))
