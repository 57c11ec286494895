# SPDX-License-Identifier: Apache-2.0
"""Watches over one phase until it ends: well, by a failure, by its deadline, or because the user wants otherwise."""

import asyncio
import math
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass

import structlog

from tandem_api.errors import Fenced, RunFailed
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import Ack, Desired, DesiredState, PhaseName, PhaseRecord
from tandem_orchestrator.run import Run
from tandem_phases.barrier import World, counted, losses, world_of
from tandem_phases.leadership import Leadership
from tandem_phases.mirror import Mirror
from tandem_phases.store import Entry

log = structlog.get_logger()

_DAY = 86400.0
_NEW_WORLD = (PhaseName.START, PhaseName.RECOVER, PhaseName.RELEASE)
"""Phases that whoever is a member takes part in: the first of a world, and the first after a Rollout's losses."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a phase ended: ``failure`` says why it did not end well."""

    acks: Mapping[int, Ack]
    failure: str | None = None


def wanted(entries: Mapping[str, Entry], keys: JobKeys) -> Desired:
    """What the user wants of the job."""
    entry = entries.get(keys.desired)
    return Desired.model_validate_json(entry.value) if entry else Desired(state=DesiredState.RUNNING)


class Attendance:
    """The barrier of one job's phases, seen from its leader.

    Life cycle: :meth:`begin` before a phase is written, :meth:`attend` once it is. Invariant: only acks of processes
    that the phase was begun with end it; one that was replaced in the meantime is lost, whatever it has acked.
    """

    def __init__(self, mirror: Mirror, keys: JobKeys, run: Run, leadership: Leadership) -> None:
        self._mirror = mirror
        self._keys = keys
        self._run = run
        self._leadership = leadership
        self._world: World = {}
        self._began = time.monotonic()

    async def gather(self, replicas: int, seconds: float) -> None:
        """Wait until every member is there: those that were lost come back as new processes.

        Raises:
            RunFailed: some did not come within ``seconds``.
        """

        def present(entries: Mapping[str, Entry]) -> bool | None:
            return set(range(replicas)) <= set(world_of(entries, self._keys)) or None

        try:
            await self._while_leading(self._mirror.until(present, seconds))
        except TimeoutError:
            missing = sorted(set(range(replicas)) - set(world_of(self._mirror.entries, self._keys)))
            raise RunFailed(f"members {missing} did not join within {seconds:.0f} s") from None

    def begin(self, record: PhaseRecord) -> None:
        """Settle who the processes of a phase are, and when it began."""
        now = world_of(self._mirror.entries, self._keys)
        self._world = now if record.name in _NEW_WORLD else {**now, **self._world}
        self._began = time.monotonic() - max(0.0, time.time() - record.started)

    def now(self, record: PhaseRecord) -> float:
        """Unix seconds, counted from the phase's start by a clock that does not jump."""
        return record.started + time.monotonic() - self._began

    async def attend(self, record: PhaseRecord) -> Ended:
        """Wait until the phase ends.

        Raises:
            Fenced: we do not lead any more. That is no failure of the run: etcd may still hold our key, so that a
                write of Failed would be taken.
        """
        return await self._while_leading(self._attend(record))

    async def _attend(self, record: PhaseRecord) -> Ended:
        waiting = [asyncio.create_task(self._mirror.until(lambda entries: self._verdict(record, entries)))]
        if record.name is PhaseName.ROLLOUT:
            waiting.append(asyncio.create_task(self._rolled_out(record)))
            passing_on = asyncio.create_task(self._pass_on(record))
        else:
            passing_on = None
        over = asyncio.create_task(self._over(record))
        try:
            await asyncio.wait({*waiting, over}, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                if task.done():
                    return task.result()
        finally:
            for pending in filter(None, (*waiting, over, passing_on)):
                pending.cancel()
        return self._late(record)

    def _late(self, record: PhaseRecord) -> Ended:
        reported = counted(self._mirror.entries, self._keys, record)
        if record.name is PhaseName.ROLLOUT:
            log.warning("the rollout's deadline has passed; what is finished is trained on", iteration=record.iteration)
            return Ended(reported)
        late = sorted(set(record.members) - set(reported))
        return Ended(reported, f"{record.name} passed its deadline; members {late} did not ack")

    async def _while_leading[T](self, waiting: Awaitable[T]) -> T:
        task = asyncio.ensure_future(waiting)
        lost = asyncio.create_task(self._leadership.lease.lost.wait())
        try:
            await asyncio.wait([task, lost], return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                raise Fenced("the leadership of this job was lost")
            return task.result()
        finally:
            for pending in (task, lost):
                pending.cancel()
            await asyncio.wait([task, lost])

    async def _over(self, record: PhaseRecord) -> None:
        """Wait for a phase's deadline. While the replay buffer is full the job pauses: that time does not count."""
        deadline, before = record.deadline or math.inf, self._run.buffer_full_seconds
        while True:
            paused = self._run.buffer_full_seconds - before
            if (left := deadline + paused - self.now(record)) <= 0:
                return
            await asyncio.sleep(min(left, _DAY))

    async def _rolled_out(self, record: PhaseRecord) -> Ended:
        await self._run.rollout_full()
        return Ended(counted(self._mirror.entries, self._keys, record))

    async def _pass_on(self, record: PhaseRecord) -> None:
        """Give what lost members hold to the others, as often as one is lost: also one that came for a lost one."""
        known: dict[int, str | None] = {}

        def news(entries: Mapping[str, Entry]) -> tuple[dict[int, str], dict[int, str | None]] | None:
            lost, now = losses(record, self._world, entries, self._keys), world_of(entries, self._keys)
            processes = {index: now.get(index) for index in lost}
            return (lost, processes) if processes != known else None

        while True:
            lost, processes = await self._mirror.until(news)
            for index, process in processes.items():
                if index not in known or known[index] not in (None, process):
                    log.warning("a member is out of this rollout; the others go on", member=index, reason=lost[index])
                    self._run.member_lost(index)
            known = processes

    def _verdict(self, record: PhaseRecord, entries: Mapping[str, Entry]) -> Ended | None:
        reported = counted(entries, self._keys, record)
        lost = losses(record, self._world, entries, self._keys)
        rollout = record.name is PhaseName.ROLLOUT
        if lost and (not rollout or set(record.members) <= set(lost)):
            return Ended(reported, "; ".join(lost[index] for index in sorted(lost)))
        desired = wanted(entries, self._keys).state
        if desired is DesiredState.STOPPED or (desired is DesiredState.SUSPENDED and rollout):
            return Ended(reported)
        if rollout or not set(record.members) <= set(reported):
            return None
        return Ended(reported, _disagreement(reported) if record.name is PhaseName.HANDOFF else None)


def _disagreement(reported: Mapping[int, Ack]) -> str | None:
    """Why the engines do not all serve the same weights, if so."""
    digests = {ack.digest for ack in reported.values()}
    if len(digests) == 1:
        return None
    return "the engines serve different weights: " + ", ".join(f"{a.index}: {a.digest}" for a in reported.values())
