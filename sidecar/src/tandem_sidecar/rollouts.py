# SPDX-License-Identifier: Apache-2.0
"""The rollout worker: leases in, segments out (phases.md, Rollout)."""

import asyncio
import contextlib
from collections.abc import Iterable

import structlog

from tandem_api.errors import Fenced, MemberFailed, TryAgain
from tandem_api.messages.work import Lease, LeaseRequest, Segment, SegmentBatch
from tandem_api.spec.algorithm import Repetition
from tandem_sidecar.busy import BusyTime
from tandem_sidecar.engine_client import EngineClient
from tandem_sidecar.metrics import MemberMetrics
from tandem_sidecar.responses import Response
from tandem_sidecar.work_client import WorkClient

log = structlog.get_logger()

_LONG_POLL = 10.0
_RENEWAL = 30.0
_ANSWER = 5.0
_LATE = 0.1
_RETRY = 0.5
_MOST_SEGMENTS = 1024
_MOST_TOKENS = 2**20
"""Of one request to the orchestrator: some 30 MB of JSON."""


class Rollouts:
    """Keeps the engine full while a Rollout lasts.

    Life cycle: :meth:`generate` -> leases are pulled, generated and brought back -> :meth:`drain`. Invariant: a
    generated token is in flight in the engine, in ``_unsent``, or on the orchestrator's disk; ``drain`` returns only
    once the first two are empty. What an engine had streamed when it died is brought back as well.

    While the orchestrator takes nothing, no more is pulled than fits into the engine once more.
    """

    def __init__(
        self,
        index: int,
        incarnation: str,
        engine: EngineClient,
        work: WorkClient,
        most: int,
        metrics: MemberMetrics,
        repetition: Repetition | None = None,
    ) -> None:
        self._index = index
        self._incarnation = incarnation
        self._engine = engine
        self._work = work
        self._most = most
        self._metrics = metrics
        self._repetition = repetition
        self._busy = BusyTime()
        self._epoch = 0
        self._weight_version = 0
        self._generating: dict[str, asyncio.Task[None]] = {}
        self._unsent: dict[str, Segment] = {}
        self._something = asyncio.Event()
        self._room = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._failed = asyncio.Event()
        self._failure = ""

    async def generate(self, epoch: int, weight_version: int) -> str:
        """Pull work of this epoch, for an engine with these weights, until the engine fails; returns why it did.

        Cancelling this stops nothing: :meth:`drain` does, keeping what was generated.
        """
        self._epoch, self._weight_version = epoch, weight_version
        self._busy = BusyTime()
        self._failed.clear()
        self._tasks = [
            asyncio.create_task(self._pull(), name="pull leases"),
            asyncio.create_task(self._bring_back(), name="bring back segments"),
        ]
        await self._failed.wait()
        return self._failure

    def fail(self, reason: str) -> None:
        """The engine is of no use any more: nothing more is pulled for it."""
        self._failure = reason
        self._failed.set()

    @property
    def busy_seconds(self) -> float | None:
        """How long the engine had something to generate in the last rollout; None before the first."""
        return self._busy.seconds if self._epoch else None

    async def drain(self) -> int:
        """Stop pulling, abort what runs keeping its tokens, and bring everything back.

        The engine stays paused. Returns how many trajectories were cut short.
        """
        if not self._tasks:
            # What a drain that was given up half way has left.
            while self._unsent:
                await self._send()
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

        A request that reached the engine after the pause is not aborted by it: it would wait for the engine to resume.
        It has generated nothing; it is aborted by name, or withdrawn if that does not help, and its lease goes back.
        """
        late = set(self._generating.values())
        with contextlib.suppress(TryAgain, MemberFailed, TimeoutError):
            async with asyncio.timeout(_ANSWER):
                while late:
                    _, late = await asyncio.wait(late, timeout=_LATE)
                    if late:
                        await self._engine.abort(*(task.get_name() for task in late))
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def _pull(self) -> None:
        while not self._failed.is_set():
            self._room.clear()
            if not self._capacity():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._room.wait(), _RENEWAL)
            # With no room left this only renews the leases of what is here.
            capacity = self._capacity()
            request = LeaseRequest(
                member=self._index,
                incarnation=self._incarnation,
                epoch=self._epoch,
                capacity=capacity,
                wait=_LONG_POLL if capacity else 0.0,
                running=(*self._generating, *self._unsent),
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
                name = f"{lease.trajectory}.{lease.offset}.{self._epoch}"
                self._generating[lease.trajectory] = asyncio.create_task(self._generate(lease, name), name=name)

    def _capacity(self) -> int:
        """How many more trajectories may be pulled: none while too much waits to be sent."""
        return self._most - len(self._generating) if len(self._unsent) < self._most else 0

    async def _generate(self, lease: Lease, name: str) -> None:
        response = Response(lease, self._weight_version, self._repetition)
        try:
            with self._busy.block():
                self._metrics.generates(len(self._generating))
                await self._collect(lease, name, response)
        except (TryAgain, MemberFailed) as error:
            log.warning("the engine failed a request", error=str(error))
            self.fail(str(error))
        finally:
            segment = response.segment()
            del self._generating[lease.trajectory]
            self._unsent[lease.trajectory] = segment
            self._something.set()
            self._room.set()
            self._metrics.generates(len(self._generating))
            self._metrics.generated(segment)

    async def _collect(self, lease: Lease, name: str, response: Response) -> None:
        """Stream the answer into ``response``, and end it early once it repeats itself."""
        aborted = False
        pieces = self._engine.generate(name, lease.tokens, lease.max_new_tokens, lease.sampling)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                response.add(piece)
                if response.repeats and not aborted:
                    aborted = True
                    await self._engine.abort(name)

    async def _bring_back(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            await self._send()

    async def _send(self) -> None:
        sending = _one_request(self._unsent.values())
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
        self._room.set()
        if self._unsent:
            self._something.set()


def _one_request(segments: Iterable[Segment]) -> list[Segment]:
    """The first of them, as many as one request should carry; at least one."""
    chosen: list[Segment] = []
    tokens = 0
    for segment in segments:
        tokens += len(segment.tokens)
        if chosen and (tokens > _MOST_TOKENS or len(chosen) == _MOST_SEGMENTS):
            break
        chosen.append(segment)
    return chosen
