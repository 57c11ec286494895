# SPDX-License-Identifier: Apache-2.0
"""A member brings back what it holds of a rollout, and pulls no more than it can bring back."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry
from waiting import DEADLINE, reached

from tandem_api.errors import TryAgain
from tandem_api.messages.work import (
    Finish,
    Lease,
    LeaseGrant,
    LeaseRequest,
    Sampling,
    Segment,
    SegmentBatch,
    SegmentReceipt,
    VersionSpan,
)
from tandem_api.spec.algorithm import Repetition
from tandem_sidecar import rollouts as module
from tandem_sidecar.engine_client import EngineClient, Generation
from tandem_sidecar.metrics import MemberMetrics
from tandem_sidecar.rollouts import Rollouts
from tandem_sidecar.work_client import WorkClient

PARTIAL = Generation((7, 8), (-0.1, -0.2), (VersionSpan(version=3, count=2),), Finish.ABORT)


class PausingEngine:
    """Answers what runs when it is paused, and holds what comes later until it is aborted by name: as vLLM does."""

    def __init__(self, late: frozenset[str], alive: bool = True, deaf: bool = False) -> None:
        self._late = late
        self._alive = alive
        self._deaf = deaf
        self._aborted: dict[str, asyncio.Event] = {}
        self._paused = asyncio.Event()
        self._asked: set[str] = set()
        self.full = asyncio.Event()

    async def generate(self, request: str, *_: Any) -> AsyncGenerator[Generation]:
        trajectory = request.split(".")[0]
        self._asked.add(trajectory)
        if len(self._asked) == 2:
            self.full.set()
        await self._paused.wait()
        if trajectory in self._late:
            await self._aborted.setdefault(request, asyncio.Event()).wait()
            yield Generation((), (), finish=Finish.ABORT)
            return
        yield PARTIAL

    async def abort(self, *requests: str) -> None:
        for request in () if self._deaf else requests:
            self._aborted[request].set()

    async def pause(self) -> None:
        self._paused.set()
        if not self._alive:
            raise TryAgain("the engine is gone")


class Work:
    """Grants each trajectory once and keeps what comes back."""

    def __init__(self, *trajectories: str) -> None:
        self._left = list(trajectories)
        self.segments: dict[str, Segment] = {}
        self.sizes: list[int] = []

    async def lease(self, request: LeaseRequest) -> LeaseGrant:
        if not self._left:
            await asyncio.Event().wait()
        leases = tuple(
            Lease(trajectory=t, tokens=(1,), offset=0, max_new_tokens=9, sampling=Sampling(), expires=60.0)
            for t in self._left
        )
        self._left = []
        return LeaseGrant(epoch=request.epoch, leases=leases)

    async def store(self, batch: SegmentBatch) -> SegmentReceipt:
        self.sizes.append(len(batch.segments))
        self.segments |= {segment.trajectory: segment for segment in batch.segments}
        return SegmentReceipt(stored=tuple(segment.trajectory for segment in batch.segments))


async def rolling(engine: PausingEngine, work: Work) -> Rollouts:
    """A member whose two trajectories are in the engine."""
    metrics = MemberMetrics(CollectorRegistry())
    rollouts = Rollouts(0, "a", cast(EngineClient, engine), cast(WorkClient, work), 8, metrics)
    generating = asyncio.create_task(rollouts.generate(epoch=4, weight_version=3))
    await asyncio.wait_for(engine.full.wait(), DEADLINE)
    generating.cancel()
    return rollouts


async def test_partial_tokens_are_brought_back_when_the_engine_pauses() -> None:
    work = Work("t0", "t1")
    rollouts = await rolling(PausingEngine(frozenset()), work)
    assert await rollouts.drain() == 2
    assert {name: segment.tokens for name, segment in work.segments.items()} == {"t0": (7, 8), "t1": (7, 8)}


@pytest.mark.parametrize(("deaf", "answer"), [(False, 60.0), (True, 1.0)], ids=["aborted", "withdrawn"])
async def test_a_request_that_reached_the_engine_after_the_pause_is_ended_and_its_lease_goes_back(
    monkeypatch: pytest.MonkeyPatch, deaf: bool, answer: float
) -> None:
    monkeypatch.setattr(module, "_ANSWER", answer)
    work = Work("t0", "t1")
    rollouts = await rolling(PausingEngine(late=frozenset({"t1"}), deaf=deaf), work)
    async with asyncio.timeout(DEADLINE):
        await rollouts.drain()
    assert work.segments["t0"].tokens == (7, 8)
    assert (work.segments["t1"].tokens, work.segments["t1"].finish) == ((), Finish.ABORT)


async def test_what_a_dying_engine_still_answered_is_brought_back() -> None:
    work = Work("t0", "t1")
    rollouts = await rolling(PausingEngine(frozenset(), alive=False), work)
    with pytest.raises(TryAgain):
        await rollouts.drain()
    assert set(work.segments) == {"t0", "t1"}


class StreamingEngine:
    """Streams the same token for ever, until it is told to abort or dies."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.aborted: list[str] = []
        self._dies_after = dies_after

    async def generate(self, request: str, *_: Any) -> AsyncGenerator[Generation]:
        pieces = 0
        while request not in self.aborted:
            if pieces == self._dies_after:
                raise TryAgain("the engine is gone")
            yield Generation((7,) * 4, (-0.1,) * 4)
            pieces += 1
            await asyncio.sleep(0)
        yield Generation((), (), (VersionSpan(version=3, count=4 * pieces),), Finish.ABORT)

    async def abort(self, request: str) -> None:
        self.aborted.append(request)

    async def pause(self) -> None:
        raise TryAgain("the engine is gone")


def member(engine: Any, work: Work, repetition: Repetition | None = None, most: int = 8) -> Rollouts:
    metrics = MemberMetrics(CollectorRegistry())
    return Rollouts(0, "a", cast(EngineClient, engine), cast(WorkClient, work), most, metrics, repetition)


async def test_a_response_that_repeats_itself_is_aborted_once_and_brought_back_marked():
    engine, work = StreamingEngine(), Work("t0")
    rollouts = member(engine, work, Repetition(ngram=2, times=5))
    generating = asyncio.create_task(rollouts.generate(epoch=4, weight_version=3))
    await reached(lambda: "t0" in work.segments, DEADLINE, "the segment")
    generating.cancel()
    assert engine.aborted == ["t0.0.4"]
    assert (work.segments["t0"].tokens, work.segments["t0"].finish) == ((7,) * 10, Finish.REPETITION)


async def test_what_an_engine_had_streamed_when_it_died_is_brought_back_and_nothing_more_is_pulled():
    work = Work("t0")
    rollouts = member(StreamingEngine(dies_after=3), work)
    reason = await asyncio.wait_for(rollouts.generate(epoch=4, weight_version=3), DEADLINE)
    assert reason == "the engine is gone"
    with pytest.raises(TryAgain):
        await rollouts.drain()
    assert (work.segments["t0"].tokens, work.segments["t0"].finish) == ((7,) * 12, Finish.ABORT)
    assert work.segments["t0"].versions == (VersionSpan(version=3, count=12),)


class FullDisk(Work):
    """Grants whatever is asked for, and takes nothing until there is room."""

    def __init__(self) -> None:
        super().__init__()
        self.room = False
        self.asked: list[LeaseRequest] = []
        self.granted = 0

    async def lease(self, request: LeaseRequest) -> LeaseGrant:
        self.asked.append(request)
        await asyncio.sleep(0)
        names = [f"t{self.granted + n}" for n in range(request.capacity)]
        self.granted += request.capacity
        lease = Lease(trajectory="", tokens=(1,), offset=0, max_new_tokens=9, sampling=Sampling(), expires=60.0)
        return LeaseGrant(epoch=request.epoch, leases=tuple(lease.model_copy(update={"trajectory": n}) for n in names))

    async def store(self, batch: SegmentBatch) -> SegmentReceipt:
        if not self.room:
            raise TryAgain("no room")
        return await super().store(batch)


class QuickEngine:
    """Answers at once."""

    async def generate(self, request: str, *_: Any) -> AsyncGenerator[Generation]:
        await asyncio.sleep(0)
        yield PARTIAL

    async def pause(self) -> None:
        return


async def test_while_the_orchestrator_takes_nothing_no_more_is_pulled_and_what_is_held_is_renewed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_RENEWAL", 0.02)
    monkeypatch.setattr(module, "_RETRY", 0.01)
    work = FullDisk()
    rollouts = member(QuickEngine(), work, most=4)
    generating = asyncio.create_task(rollouts.generate(epoch=4, weight_version=3))
    await reached(lambda: len(work.asked) > 10, DEADLINE, "ten requests for leases")
    assert work.granted < 8
    assert {request.capacity for request in work.asked[-5:]} == {0}
    assert set(work.asked[-1].running) == {f"t{n}" for n in range(work.granted)}
    held, work.room = work.granted, True
    await reached(lambda: work.granted > held, DEADLINE, "leases once there is room")
    generating.cancel()
    await rollouts.drain()
    assert len(work.segments) == work.granted


async def test_no_request_carries_more_tokens_than_the_orchestrator_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_TOKENS", 5)
    work = FullDisk()
    rollouts = member(QuickEngine(), work, most=7)
    generating = asyncio.create_task(rollouts.generate(epoch=4, weight_version=3))
    await reached(lambda: work.granted >= 7, DEADLINE, "seven leases")
    generating.cancel()
    work.room = True
    await rollouts.drain()
    assert len(work.segments) == work.granted
    assert max(work.sizes) == 2
