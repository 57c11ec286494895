# SPDX-License-Identifier: Apache-2.0
"""What a member holds of a rollout when the phase moves on, it brings back."""

import asyncio
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

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
from tandem_sidecar import rollouts as module
from tandem_sidecar.engine_client import EngineClient, Generation
from tandem_sidecar.metrics import MemberMetrics
from tandem_sidecar.rollouts import Rollouts
from tandem_sidecar.work_client import WorkClient

PARTIAL = Generation((7, 8), (-0.1, -0.2), (VersionSpan(version=3, count=2),), Finish.ABORT)


class PausingEngine:
    """Answers what runs when it is paused, and holds what comes later: as vLLM does."""

    def __init__(self, late: frozenset[str], alive: bool = True) -> None:
        self._late = late
        self._alive = alive
        self._paused = asyncio.Event()
        self._asked: set[str] = set()
        self.full = asyncio.Event()

    async def generate(self, request: str, *_: Any) -> Generation:
        trajectory = request.split(".")[0]
        self._asked.add(trajectory)
        if len(self._asked) == 2:
            self.full.set()
        await self._paused.wait()
        if trajectory in self._late:
            await asyncio.Event().wait()
        return PARTIAL

    async def pause(self) -> None:
        self._paused.set()
        if not self._alive:
            raise TryAgain("the engine is gone")


class Work:
    """Grants each trajectory once and keeps what comes back."""

    def __init__(self, *trajectories: str) -> None:
        self._left = list(trajectories)
        self.segments: dict[str, Segment] = {}

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
        self.segments |= {segment.trajectory: segment for segment in batch.segments}
        return SegmentReceipt(stored=tuple(segment.trajectory for segment in batch.segments))


async def rolling(engine: PausingEngine, work: Work) -> Rollouts:
    """A member whose two trajectories are in the engine."""
    metrics = MemberMetrics(CollectorRegistry())
    rollouts = Rollouts(0, "a", cast(EngineClient, engine), cast(WorkClient, work), 8, metrics)
    generating = asyncio.create_task(rollouts.generate(epoch=4))
    await asyncio.wait_for(engine.full.wait(), 10)
    generating.cancel()
    return rollouts


async def test_partial_tokens_are_brought_back_when_the_engine_pauses() -> None:
    work = Work("t0", "t1")
    rollouts = await rolling(PausingEngine(frozenset()), work)
    assert await rollouts.drain() == 2
    assert {name: segment.tokens for name, segment in work.segments.items()} == {"t0": (7, 8), "t1": (7, 8)}


async def test_a_request_that_reached_the_engine_after_the_pause_is_withdrawn_and_its_lease_goes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_ANSWER", 0.05)
    work = Work("t0", "t1")
    rollouts = await rolling(PausingEngine(late=frozenset({"t1"})), work)
    async with asyncio.timeout(10):
        await rollouts.drain()
    assert work.segments["t0"].tokens == (7, 8)
    assert (work.segments["t1"].tokens, work.segments["t1"].finish) == ((), Finish.ABORT)


async def test_what_a_dying_engine_still_answered_is_brought_back() -> None:
    work = Work("t0", "t1")
    rollouts = await rolling(PausingEngine(frozenset(), alive=False), work)
    with pytest.raises(TryAgain):
        await rollouts.drain()
    assert set(work.segments) == {"t0", "t1"}
