# SPDX-License-Identifier: Apache-2.0
"""Does faults to a job, one after the other."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from tandem_api.errors import RunFailed
from tandem_api.messages.phases import PhaseName
from tandem_cli.chaos.place import ArmedFault, Job, JobEnded, NotDone, Seen
from tandem_cli.chaos.plan import Component, Fault, Kind
from tandem_cli.chaos.recovery import Judge, Recovery

_NEED_ALL = (PhaseName.WARMUP, PhaseName.TRAIN, PhaseName.HANDOFF)
"""Phases long enough to be hit in which the loss of any member means a new world."""


@dataclass(frozen=True, slots=True)
class Struck:
    """``fault`` was just done, in ``hit``."""

    fault: Fault
    hit: PhaseName


class Injector:
    """Does one fault at a time, and waits until the job has recovered.

    Each wait takes ``patience`` seconds at most. ``before`` is called right before a fault, ``tell`` right after it.

    >>> injector = Injector(job, patience=600)                                                   # doctest: +SKIP
    >>> recovery = await injector.inflict(Fault(Kind.KILL, Component.ENGINE, PhaseName.ROLLOUT))
    """

    def __init__(
        self,
        job: Job,
        patience: float,
        before: Callable[[], None] = lambda: None,
        tell: Callable[[Struck], None] = lambda _: None,
    ) -> None:
        self._job = job
        self._patience = patience
        self._before = before
        self._tell = tell

    async def inflict(self, fault: Fault) -> Recovery:
        """Wait for the fault's phase to begin, do it, and wait until the job has recovered from it.

        Raises:
            NotDone: it could not be done, or the phase did not come in time.
            JobEnded: the job had ended before.
        """
        async with self._job.armed(fault) as armed:
            before = await self._moment(fault)
            self._before()
            at = await armed.strike()
            hit = self._now().record.name
            self._tell(Struck(fault, hit))
            judge = Judge(fault, before)
            try:
                ended = await self._recovered(judge, armed)
            except RunFailed as error:
                return Recovery(fault, hit, at, None, judge.new_world, str(error))
            except TimeoutError:
                reason = f"the job did not work again within {self._patience:.0f} s"
                return Recovery(fault, hit, at, None, judge.new_world, reason)
            return Recovery(fault, hit, at, max(0.0, ended - at), judge.new_world, judge.reason)

    def _now(self) -> Seen:
        assert self._job.seen is not None, "a phase has begun"
        return self._job.seen

    async def _moment(self, fault: Fault) -> Seen:
        """The job when the fault is due. A handoff may be over by then: there are segments in the next one."""
        try:
            async with asyncio.timeout(self._patience + fault.after):
                while True:
                    await self._begun(fault)
                    await asyncio.sleep(fault.after)
                    before = self._now()
                    if fault.kind is not Kind.CORRUPT_SEGMENT or before.record.name is PhaseName.HANDOFF:
                        return before
        except TimeoutError:
            raise NotDone(f"{fault.phase} did not begin within {self._patience:.0f} s") from None

    async def _begun(self, fault: Fault) -> None:
        """Returns when the next phase of the fault's name begins."""
        epoch = self._job.seen.record.epoch if self._job.seen else 0
        if fault.phase is PhaseName.RECOVER:
            await self._bring_about_recovery(fault)

        def begun(seen: Seen) -> bool | None:
            if seen.record.name.final:
                raise JobEnded(f"the job was {seen.record.name} before {fault.phase} came")
            return (seen.record.epoch > epoch and seen.record.name is fault.phase) or None

        await self._job.until(begun)

    async def _bring_about_recovery(self, fault: Fault) -> None:
        """A member loses its place in a phase that needs all of them; a Rollout would go on with the others."""
        await self._job.until(lambda seen: seen.record.name in _NEED_ALL or None)
        index = fault.index if fault.component.in_pod else 0
        async with self._job.armed(Fault(Kind.LOSE_LEASE, Component.SIDECAR, fault.phase, index)) as armed:
            await armed.strike()

    async def _recovered(self, judge: Judge, armed: ArmedFault) -> float:
        """When the job worked again; patience begins when the fault is over."""
        judging = asyncio.create_task(self._job.until(judge), name="wait for the recovery")
        try:
            if judge.fault.kind is Kind.CORRUPT_SEGMENT:
                # It is the weights of one handoff that are damaged, whichever that was.
                await self._job.until(_handed_over, self._patience)
                await armed.end()
            await armed.over()
            judge.over(self._now())
            return await asyncio.wait_for(judging, self._patience)
        finally:
            judging.cancel()
            await asyncio.gather(judging, return_exceptions=True)


def _handed_over(seen: Seen) -> bool | None:
    return seen.record.name is not PhaseName.HANDOFF or None
