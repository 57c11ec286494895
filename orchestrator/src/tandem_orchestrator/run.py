# SPDX-License-Identifier: Apache-2.0
"""A run as its driver sees it: data, buffer, rollouts, batches and figures behind one object."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from tandem_api.environment import Job
from tandem_api.errors import Fenced, TryAgain
from tandem_api.messages.phases import BufferCounts
from tandem_api.messages.work import LeaseGrant, LeaseRequest, SegmentBatch, SegmentReceipt
from tandem_api.spec import RLJobSpec
from tandem_orchestrator.batches import Body
from tandem_orchestrator.buffer import Buffer, BufferFull
from tandem_orchestrator.corpus import Corpus
from tandem_orchestrator.curves import Curves
from tandem_orchestrator.metrics_log import JsonLines
from tandem_orchestrator.results import BatchSummary, EvaluationResult
from tandem_orchestrator.rollouts import Rollout
from tandem_orchestrator.serving import BatchServer

log = structlog.get_logger()

_EXPIRY_PERIOD = 1.0
_BUFFER_SHARE = 0.75
"""Of ``orchestrator.storage``; the rest is for the write-ahead log, metrics, timeline and a made model."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a run goes on: ``checkpoint`` covers ``iteration`` iterations; (0, None) at the beginning."""

    iteration: int = 0
    checkpoint: str | None = None


class Run:
    """Everything of a run but its phases.

    Life cycle: :meth:`prepare` once; then, for each rollout, :meth:`open_rollout`, :meth:`serve` with the epoch of
    its phase, :meth:`rollout_full`, :meth:`close_rollout`; then :meth:`trained`, and :meth:`durable` whenever a
    checkpoint is on disk; :meth:`stop` at the end. Any of it may be begun again after a crash or a rollback.

    >>> run = Run(job, state_dir)                                                        # doctest: +SKIP
    >>> await run.prepare()
    >>> at = await run.resume_point()
    >>> for iteration in range(at.iteration, job.spec.iterations):
    ...     await run.open_rollout(iteration, weight_version=iteration, members=(0, 1))
    ...     run.serve(epoch)                      # the Rollout phase is written with this epoch
    ...     await run.rollout_full()
    ...     # phase Release: engines flush what they have
    ...     batch = await run.close_rollout()
    ...     # phase Train: trainers pull /v1/batches/<iteration>
    ...     run.trained(iteration, {"rewardMean": batch.reward_mean})
    ...     await run.durable(iteration + 1, "/checkpoints/iter-0000001")
    """

    def __init__(self, job: Job, state_dir: Path) -> None:
        self._job = job
        self._state_dir = state_dir
        self._open: _Opened | None = None
        self._rollout: Rollout | None = None
        self._epoch = 0
        self._served = asyncio.Event()
        self._expiring: asyncio.Task[None] | None = None
        self._speeds: dict[int, float] = {}
        self._summaries: dict[int, BatchSummary] = {}
        self._evaluations: dict[int, EvaluationResult] = {}
        self.metrics = JsonLines(state_dir / "metrics.jsonl", key="iteration")
        self.timeline = JsonLines(state_dir / "timeline.jsonl")
        self._curves = Curves(state_dir)

    async def prepare(self) -> None:
        """Read the data, the tokenizer and the buffer, and check that every prompt can be scored.

        Raises:
            UserError: anything of what the user gave is wrong; nothing was started.
        """
        self._state_dir.mkdir(parents=True, exist_ok=True)
        corpus = await asyncio.to_thread(Corpus.read, self._job, self._state_dir)
        warmup = await asyncio.to_thread(corpus.warmup)
        buffer = await self._buffer()
        self._open = _Opened(corpus, warmup, buffer, BatchServer(buffer, corpus))
        self._summaries = {n: BatchSummary.parse(text) for n, text in (await buffer.summaries()).items()}
        self._evaluations = {n: EvaluationResult.parse(text) for n, text in (await buffer.evaluations()).items()}

    def adopt(self, job: Job) -> None:
        """Go on with what the user has changed of the job; a rollout that is open ends as it began."""
        self._job = job

    @property
    def spec(self) -> RLJobSpec:
        """What the user wants by now; ``iterations`` may have grown."""
        return self._job.spec

    async def _buffer(self) -> Buffer:
        """Open the buffer, which needs some room, as soon as there is that."""
        while True:
            try:
                return Buffer(
                    self._state_dir / "buffer.sqlite", int(_BUFFER_SHARE * self._job.spec.orchestrator.storage)
                )
            except BufferFull as error:
                log.warning("the buffer cannot be opened yet", error=str(error))
            await asyncio.sleep(_EXPIRY_PERIOD)

    async def resume_point(self) -> ResumePoint:
        """The newest checkpoint known to be durable."""
        found = await self._opened.buffer.newest_checkpoint()
        return ResumePoint(*found) if found else ResumePoint()

    async def open_rollout(self, iteration: int, weight_version: int, members: Iterable[int]) -> None:
        """Begin the rollout of ``iteration``, or begin it again; ``iteration == iterations`` only evaluates.

        ``members`` are expected to take part, each with its share of the work. Nothing is leased to them before
        :meth:`serve`.
        """
        if self._rollout is not None:
            self._speeds |= self._rollout.speeds()
        await self._end_rollout()
        opened, spec = self._opened, self._job.spec
        rollout = Rollout(spec, opened.buffer, opened.corpus, iteration, weight_version, members, self._speeds)
        await rollout.open()
        self._rollout = rollout
        self._expiring = asyncio.create_task(self._expire(rollout), name="expire leases")

    def serve(self, epoch: int) -> None:
        """Give leases to members that are in ``epoch``, and to no others."""
        self._epoch = epoch
        self._served.set()
        self._served = asyncio.Event()

    async def rollout_full(self) -> None:
        """Wait until batch and evaluation are complete. After a rollback that can be at once."""
        await self._current.full()

    @property
    def rollout_complete(self) -> bool:
        """Whether :meth:`rollout_full` would return at once."""
        return self._rollout is not None and self._rollout.is_full

    async def close_rollout(self) -> BatchSummary | None:
        """Write the batch of what is ready, and the evaluation; ``None`` if there is no batch to write.

        Segments of unfinished trajectories are still taken until the next rollout opens. A rollout that was
        interrupted is not closed: it goes on when it is opened again.

        Raises:
            RunFailed: nothing of the iteration can be trained on.
        """
        rollout = self._rollout
        if rollout is None:
            return None
        summary = await rollout.close()
        if summary is not None:
            self._summaries[rollout.iteration] = summary
        if rollout.evaluation is not None:
            self._evaluations[rollout.iteration] = rollout.evaluation
        return summary

    def batch_ready(self, iteration: int) -> bool:
        """Whether the batch of ``iteration`` is closed; after a rollback it is served again."""
        return iteration in self._summaries

    def batch_summary(self, iteration: int) -> BatchSummary | None:
        """The closed batch of ``iteration`` in numbers."""
        return self._summaries.get(iteration)

    def accuracy(self, iteration: int) -> float | None:
        """Held-out accuracy of the weights after ``iteration`` iterations, where they were evaluated."""
        found = self._evaluations.get(iteration)
        return found.accuracy if found else None

    def trained(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Add the line of ``iteration`` to metrics.jsonl, in the place of an earlier one, and to the curves."""
        line = {"iteration": iteration, **metrics}
        self.metrics.write(line)
        self._curves.add(line)

    async def durable(self, iteration: int, checkpoint: str) -> None:
        """``checkpoint`` holds the weights after ``iteration`` iterations, and is on disk.

        From here on the batches before it may be pruned: the buffer keeps to half of ``orchestrator.storage``, and
        grows to three quarters of it between checkpoints.
        """
        await self._opened.buffer.durable(iteration, checkpoint)
        pruned = await self._opened.buffer.prune(self._job.spec.orchestrator.storage // 2)
        if pruned:
            log.info("tokens of old batches were deleted", batches=pruned)

    def member_lost(self, member: int) -> None:
        """Give what this member held to the others."""
        if self._rollout is not None:
            self._rollout.lost(member)

    def rollout_done(self) -> tuple[int, int]:
        """Settled and wanted training trajectories of the current rollout."""
        return self._rollout.done() if self._rollout is not None else (0, self._job.spec.samples_per_iteration)

    async def buffer_counts(self) -> BufferCounts:
        """What the current rollout holds that is in no batch yet."""
        return self._rollout.counts() if self._rollout is not None else BufferCounts()

    @property
    def buffer_full(self) -> bool:
        """Whether there was no room for the last write: nothing is lost, nothing is leased until there is room."""
        return self._opened.buffer.full

    @property
    def buffer_full_seconds(self) -> float:
        """For how long there was no room since :meth:`prepare`, all times together."""
        return self._opened.buffer.full_seconds

    @property
    def sandbox(self) -> dict[str, bool]:
        """Of each guarantee of the code sandbox whether it holds here; empty without one."""
        return self._opened.corpus.scoring.sandbox

    @property
    def skipped_records(self) -> int:
        return self._opened.corpus.sets.skipped

    async def stop(self) -> None:
        """End scoring, close what is open. What was acknowledged is on disk."""
        await self._end_rollout()
        if self._open is not None:
            await self._open.corpus.scoring.close()
            await asyncio.to_thread(self._open.buffer.close)
            self._open = None

    # What the HTTP API asks for

    async def lease(self, request: LeaseRequest) -> LeaseGrant:
        """Leases for a member of the current epoch, after at most ``request.wait`` seconds.

        Raises:
            Fenced: the member is in an older epoch.
            TryAgain: the member is ahead of us, or no rollout is open.
            BufferFull: there is no room for what it would generate.
        """
        until = time.monotonic() + request.wait
        await self._reach(request.epoch, until)
        rollout = self._current
        if self.buffer_full:
            await rollout.grant(request.model_copy(update={"capacity": 0}), time.monotonic())
            raise BufferFull("the replay buffer is full; nothing is leased until there is room")
        while True:
            news = rollout.news
            leases = await rollout.grant(request, time.monotonic())
            left = until - time.monotonic()
            if leases or left <= 0 or not request.capacity or rollout is not self._rollout:
                return LeaseGrant(epoch=self._epoch, leases=leases)
            await _wait(news, left)

    async def store(self, batch: SegmentBatch) -> SegmentReceipt:
        """Segments onto the disk. Of any epoch: what makes a segment count are its trajectory, offset and versions.

        Raises:
            TryAgain: no rollout is open yet, or the volume is full.
        """
        return await self._current.accept(batch, time.monotonic())

    async def batch(self, iteration: int) -> Body | None:
        """The closed batch of an iteration, ``None`` if there is none."""
        return await self._opened.batches.body(iteration)

    @property
    def warmup(self) -> Body | None:
        """The warm-up set, ``None`` if the job has none."""
        return self._opened.warmup

    def report(self) -> dict[str, Any]:
        """The run so far."""
        done, wanted = self.rollout_done()
        return {"job": self._job.name, "done": done, "wanted": wanted, "iterations": self.metrics.lines}

    @property
    def _opened(self) -> "_Opened":
        if self._open is None:
            raise TryAgain("the run is still being prepared")
        return self._open

    @property
    def _current(self) -> Rollout:
        if self._rollout is None:
            raise TryAgain("no rollout is open")
        return self._rollout

    async def _reach(self, epoch: int, until: float) -> None:
        """Wait until we are in ``epoch``: a member can see a phase in etcd before its writer goes on."""
        while epoch > self._epoch:
            served, left = self._served, until - time.monotonic()
            if left <= 0:
                raise TryAgain(f"epoch {epoch} is not served yet, {self._epoch} is")
            await _wait(served, left)
        if epoch < self._epoch:
            raise Fenced(f"epoch {epoch} is over, this is epoch {self._epoch}")

    async def _end_rollout(self) -> None:
        if self._expiring is not None:
            self._expiring.cancel()
            await asyncio.wait([self._expiring])
            self._expiring = None
        if self._rollout is not None:
            rollout, self._rollout = self._rollout, None
            await rollout.stop()

    async def _expire(self, rollout: Rollout) -> None:
        while True:
            await asyncio.sleep(_EXPIRY_PERIOD)
            rollout.expire(time.monotonic())
            await self._opened.buffer.look_for_room()


@dataclass(frozen=True, slots=True)
class _Opened:
    corpus: Corpus
    warmup: Body | None
    buffer: Buffer
    batches: BatchServer


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
