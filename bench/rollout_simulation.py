# SPDX-License-Identifier: Apache-2.0
"""Rollouts in simulated time: the orchestrator's own code decides, engines are simulated from a measured speed curve.

What is real: :class:`tandem_orchestrator.rollouts.Rollout` with its leases, groups, rules and the SQLite buffer. What
is simulated: the engines (continuous batching, with the step time of the curve), the sidecars (they pull at once when a
place is free, and bring back at once what is done) and the clock. Training and switches take no time.
"""

import heapq
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tandem_api.environment import Job
from tandem_api.messages.work import Finish, Lease, LeaseRequest, Segment, SegmentBatch, VersionSpan
from tandem_orchestrator.buffer import Buffer
from tandem_orchestrator.corpus import Corpus
from tandem_orchestrator.rollouts import Rollout

UNIT = 32
"""Tokens that one token of the simulation stands for: lengths are in units, times are those of all tokens."""


@dataclass(frozen=True)
class SpeedCurve:
    """Seconds of a decoding step by the number of sequences, linear in between; prefill in tokens a second."""

    batches: tuple[int, ...]
    seconds: tuple[float, ...]
    prefill: float

    def step(self, batch: int) -> float:
        return float(np.interp(batch, self.batches, self.seconds))

    def best(self, most: int) -> float:
        """Tokens a second of an engine that is as full as pays off, with at most ``most`` sequences."""
        return max(batch / self.step(batch) for batch in range(1, most + 1))


@dataclass
class Running:
    """A lease in an engine. ``left`` counts what it may still generate of what the response wants."""

    lease: Lease
    length: int
    left: float
    made: int
    ends: bool


@dataclass
class SimulatedEngine:
    """One member: its sequences advance together, each step as long as the curve says for so many.

    ``worked`` are the seconds that the same prefill and tokens take an engine which is always as full as pays off.
    """

    member: int
    curve: SpeedCurve
    most: int
    lengths: Callable[[str], int]
    running: dict[str, Running] = field(default_factory=dict)
    since: float = 0.0
    stall: float = 0.0
    worked: float = 0.0
    changes: int = 0
    cached: set[str] = field(default_factory=set)

    @property
    def room(self) -> int:
        return self.most - len(self.running)

    def advance(self, now: float) -> None:
        """Bring all sequences to ``now``; prefill goes before steps."""
        elapsed = now - self.since
        self.since = now
        held = min(elapsed, self.stall)
        self.stall -= held
        self.worked += held
        if self.running:
            step = self.curve.step(len(self.running))
            steps = (elapsed - held) / (UNIT * step)
            self.worked += (elapsed - held) * len(self.running) / (step * self.curve.best(self.most))
            for sequence in self.running.values():
                sequence.left -= steps

    def admit(self, leases: tuple[Lease, ...], now: float) -> None:
        """Take leases; what another engine or other weights have computed must be computed again."""
        self.advance(now)
        for lease in leases:
            wanted = self.lengths(lease.trajectory) - lease.offset
            made = min(wanted, lease.max_new_tokens)
            self.running[lease.trajectory] = Running(lease, wanted, made, made, made == wanted)
            if lease.trajectory not in self.cached:
                self.stall += lease.offset * UNIT / self.curve.prefill
            self.cached.add(lease.trajectory)
        self.changes += bool(leases)

    def next_end(self) -> float:
        """When the next sequence is done, if nothing changes."""
        nearest = min(sequence.left for sequence in self.running.values())
        return self.since + self.stall + max(0.0, nearest) * UNIT * self.curve.step(len(self.running))

    def take_done(self, now: float, version: int) -> list[Segment]:
        self.advance(now)
        done = [name for name, sequence in self.running.items() if sequence.left <= 1e-9]
        self.changes += 1
        return [self._segment(self.running.pop(name), version) for name in done]

    def abort(self, now: float, version: int) -> list[Segment]:
        """Everything that runs, with what it has; the weights are about to change."""
        self.advance(now)
        cut = [self._cut(sequence, version) for sequence in self.running.values()]
        self.running.clear()
        self.cached.clear()
        self.stall = 0.0
        self.changes += 1
        return cut

    def _segment(self, sequence: Running, version: int) -> Segment:
        return _segment(sequence.lease, sequence.made, Finish.STOP if sequence.ends else Finish.LENGTH, version)

    def _cut(self, sequence: Running, version: int) -> Segment:
        made = min(sequence.made - 1, int(sequence.made - max(0.0, sequence.left)))
        return _segment(sequence.lease, max(0, made), Finish.ABORT, version)


def _segment(lease: Lease, count: int, finish: Finish, version: int) -> Segment:
    return Segment(
        trajectory=lease.trajectory,
        offset=lease.offset,
        tokens=(2,) * count,
        logprobs=(0.0,) * count,
        versions=(VersionSpan(version=version, count=count),) if count else (),
        finish=finish,
    )


@dataclass(frozen=True)
class Iteration:
    """``tokens`` were trained on; ``age`` is that of the oldest, in weight versions.

    ``utilisation``: the share of the engines' capacity that went into prefill and tokens, trained on or not; of a real
    engine it is not known.
    """

    seconds: float
    tokens: int
    age: int
    utilisation: float | None = None


class Simulation:
    """A run of rollouts on ``engines``, one after the other, with a buffer in ``directory``."""

    def __init__(self, job: Job, directory: Path, engines: list[SimulatedEngine]) -> None:
        self._job = job
        self._corpus = Corpus.read(job, directory)
        self._buffer = Buffer(directory / "buffer.sqlite")
        self._engines = engines
        self._now = time.monotonic()
        self._speeds: dict[int, float] = {}

    async def iterate(self, iteration: int) -> Iteration:
        """One rollout to its closed batch."""
        members = [engine.member for engine in self._engines]
        rollout = Rollout(
            self._job.spec, self._buffer, self._corpus, iteration, iteration, members, self._speeds, now=self._now
        )
        await rollout.open()
        began = self._now
        for engine in self._engines:
            engine.since, engine.worked = began, 0.0
        await self._generate(rollout, iteration)
        for engine in self._engines:
            await self._bring(rollout, engine, engine.abort(self._now, iteration))
        summary = await rollout.close()
        self._speeds |= rollout.speeds()
        await rollout.stop()
        assert summary is not None
        seconds, worked = self._now - began, sum(engine.worked for engine in self._engines)
        return Iteration(seconds, summary.tokens * UNIT, summary.age_max, worked / (seconds * len(self._engines)))

    async def _generate(self, rollout: Rollout, version: int) -> None:
        ends: list[tuple[float, int, int]] = []
        await self._pull(rollout, ends)
        while not rollout.is_full:
            self._now, member, changes = heapq.heappop(ends)
            engine = self._engines[member]
            if changes != engine.changes:
                continue
            await self._bring(rollout, engine, engine.take_done(self._now, version))
            if engine.running:
                heapq.heappush(ends, (engine.next_end(), member, engine.changes))
            await self._pull(rollout, ends)

    async def _pull(self, rollout: Rollout, ends: list[tuple[float, int, int]]) -> None:
        """Every engine with room asks, as long as anything waits."""
        hungry = [engine for engine in self._engines if engine.room]
        while hungry and rollout._leases.waiting:
            engine = hungry.pop()
            request = LeaseRequest(member=engine.member, incarnation="a", epoch=1, capacity=engine.room)
            if leases := await rollout.grant(request, self._now):
                engine.admit(leases, self._now)
                heapq.heappush(ends, (engine.next_end(), engine.member, engine.changes))

    async def _bring(self, rollout: Rollout, engine: SimulatedEngine, segments: list[Segment]) -> None:
        if segments:
            batch = SegmentBatch(member=engine.member, incarnation="a", epoch=1, segments=tuple(segments))
            receipt = await rollout.accept(batch, self._now)
            assert not receipt.refused, receipt.refused
            await rollout._verdicts.wait(60.0)

    async def close(self) -> None:
        await self._corpus.scoring.close()
        self._buffer.close()


def lognormal(longest: int) -> Callable[[str], int]:
    """Median 4,000 tokens, sigma 1: the mean is 6,600, one in a hundred wants more than 40,000."""

    def length(trajectory: str) -> int:
        drawn = random.Random(trajectory).lognormvariate(np.log(4000), 1.0)
        return _units(drawn, longest)

    return length


_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 0.99, 1.0)
_TOKENS = (300, 1200, 2200, 4500, 9000, 16000, 26000, 32768, 60000)


def long_thoughts(longest: int) -> Callable[[str], int]:
    """The shape that runs with long chains of thought report: most are short, one in a hundred never ends.

    Quantiles chosen by hand after such reports, linear in between; no data set.
    """

    def length(trajectory: str) -> int:
        return _units(float(np.interp(random.Random(trajectory).random(), _QUANTILES, _TOKENS)), longest)

    return length


def _units(tokens: float, longest: int) -> int:
    return max(1, round(min(tokens, longest) / UNIT))
