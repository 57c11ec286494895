# SPDX-License-Identifier: Apache-2.0
"""The rollout worker: leases in, segments out (phases.md, Rollout)."""

import asyncio

import structlog

from tandem_api.errors import Fenced, MemberFailed, TryAgain
from tandem_api.messages.work import Finish, Lease, LeaseRequest, Segment, SegmentBatch
from tandem_sidecar.busy import BusyTime
from tandem_sidecar.engine_client import EngineClient, Generation
from tandem_sidecar.metrics import MemberMetrics
from tandem_sidecar.work_client import WorkClient

log = structlog.get_logger()

_LONG_POLL = 10.0
_RENEWAL = 30.0
_ANSWER = 5.0
_NOTHING = Generation(tokens=(), logprobs=(), versions=(), finish=Finish.ABORT)
_RETRY = 0.5
_BATCH = 1024


class Rollouts:
    """Keeps the engine full while a Rollout lasts.

    Life cycle: :meth:`generate` -> leases are pulled, generated and brought back -> :meth:`drain`. Invariant: a
    generated token is in flight in the engine, in ``_unsent``, or on the orchestrator's disk; ``drain`` returns only
    once the first two are empty.
    """

    def __init__(
        self,
        index: int,
        incarnation: str,
        engine: EngineClient,
        work: WorkClient,
        most: int,
        metrics: MemberMetrics,
    ) -> None:
        self._index = index
        self._incarnation = incarnation
        self._engine = engine
        self._work = work
        self._most = most
        self._metrics = metrics
        self._busy = BusyTime()
        self._epoch = 0
        self._generating: dict[str, asyncio.Task[None]] = {}
        self._unsent: dict[str, Segment] = {}
        self._something = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[str] | None = None

    async def generate(self, epoch: int) -> str:
        """Pull work of this epoch until the engine fails; returns why it did.

        Cancelling this stops nothing: :meth:`drain` does, keeping what was generated.
        """
        self._epoch = epoch
        self._busy = BusyTime()
        self._failed = asyncio.get_running_loop().create_future()
        self._tasks = [
            asyncio.create_task(self._pull(), name="pull leases"),
            asyncio.create_task(self._bring_back(), name="bring back segments"),
        ]
        return await self._failed

    @property
    def busy_seconds(self) -> float | None:
        """How long the engine had something to generate in the last rollout; None before the first."""
        return self._busy.seconds if self._epoch else None

    async def drain(self) -> int:
        """Stop pulling, abort what runs keeping its tokens, and bring everything back.

        The engine stays paused. Returns how many trajectories were cut short.
        """
        if not self._tasks:
            return 0
        pulling, bringing = self._tasks
        self._tasks = []
        pulling.cancel()
        await asyncio.wait([pulling])
        cut = len(self._generating)
        try:
            await self._engine.pause()
        finally:
            await self._gather_answers()
            bringing.cancel()
            await asyncio.wait([bringing])
            while self._unsent:
                await self._send()
        return cut

    async def _gather_answers(self) -> None:
        """The answers to what the pause aborted.

        A request that reached the engine after the pause is not aborted: it would wait for the engine to resume. It
        has generated nothing, so it is withdrawn, and its lease goes back.
        """
        if not self._generating:
            return
        _, late = await asyncio.wait(self._generating.values(), timeout=_ANSWER)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def _pull(self) -> None:
        while True:
            if len(self._generating) >= self._most:
                running = self._generating.values()
                await asyncio.wait(running, timeout=_RENEWAL, return_when=asyncio.FIRST_COMPLETED)
            # With no room left this only renews the leases of what runs.
            capacity = self._most - len(self._generating)
            request = LeaseRequest(
                member=self._index,
                incarnation=self._incarnation,
                epoch=self._epoch,
                capacity=capacity,
                wait=_LONG_POLL if capacity else 0.0,
                running=tuple(self._generating),
            )
            try:
                grant = await self._work.lease(request)
            except TryAgain as error:
                log.warning("no leases for now", error=str(error))
                await asyncio.sleep(_RETRY)
                continue
            except Fenced as error:
                log.warning("this rollout is over for us", error=str(error))
                return
            for lease in grant.leases:
                self._generating[lease.trajectory] = asyncio.create_task(self._generate(lease))

    async def _generate(self, lease: Lease) -> None:
        try:
            name = f"{lease.trajectory}.{lease.offset}.{self._epoch}"
            with self._busy.block():
                self._metrics.generates(len(self._generating))
                made = await self._engine.generate(name, lease.tokens, lease.max_new_tokens, lease.sampling)
            self._metrics.generated(made)
        except (TryAgain, MemberFailed) as error:
            log.warning("the engine failed a request", error=str(error))
            if self._failed is not None and not self._failed.done():
                self._failed.set_result(str(error))
            return
        except asyncio.CancelledError:
            self._unsent[lease.trajectory] = _segment(lease, _NOTHING)
            raise
        finally:
            del self._generating[lease.trajectory]
            self._metrics.generates(len(self._generating))
        self._unsent[lease.trajectory] = _segment(lease, made)
        self._something.set()

    async def _bring_back(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            await self._send()

    async def _send(self) -> None:
        sending = list(self._unsent.values())[:_BATCH]
        batch = SegmentBatch(
            member=self._index, incarnation=self._incarnation, epoch=self._epoch, segments=tuple(sending)
        )
        try:
            receipt = await self._work.store(batch)
        except TryAgain as error:
            log.warning("the orchestrator did not take our segments; they are kept", error=str(error))
            await asyncio.sleep(_RETRY)
            self._something.set()
            return
        for trajectory, reason in receipt.refused.items():
            log.warning("a segment was not wanted any more", trajectory=trajectory, reason=reason)
        for segment in sending:
            self._unsent.pop(segment.trajectory)
        if self._unsent:
            self._something.set()


def _segment(lease: Lease, made: Generation) -> Segment:
    return Segment(
        trajectory=lease.trajectory,
        offset=lease.offset,
        tokens=made.tokens,
        logprobs=made.logprobs,
        versions=made.versions,
        finish=made.finish,
    )
