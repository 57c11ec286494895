# SPDX-License-Identifier: Apache-2.0
"""The phase driver: leads the job, and moves it from phase to phase until it is over (phases.md)."""

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from tandem_api.environment import Job
from tandem_api.errors import Fenced, RunFailed, TryAgain
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import DesiredState, PhaseName, PhaseRecord, Progress
from tandem_api.spec import RLJobSpec
from tandem_api.spec.lifecycle import PhaseDeadlines
from tandem_orchestrator.attendance import Attendance, Ended, wanted
from tandem_orchestrator.ledger import Ledger
from tandem_orchestrator.metrics import RunMetrics
from tandem_orchestrator.reporting import Reporter
from tandem_orchestrator.run import ResumePoint, Run
from tandem_orchestrator.settlement import Settlement
from tandem_phases.leadership import Leadership, lead
from tandem_phases.membership import acks
from tandem_phases.mirror import Mirror
from tandem_phases.phase import SeenPhase, current, move
from tandem_phases.store import Store
from tandem_phases.transitions import Facts, Next, failed, first_phase, next_phase

if TYPE_CHECKING:
    # OpenTelemetry is imported only where a collector is named.
    from tandem_orchestrator.traces import Traces

log = structlog.get_logger()

LEASE_SECONDS = 10.0
_RETRY_SECONDS = 1.0


class Driver:
    """Moves one job.

    The loop is :meth:`_lead`: attend to the phase until it ends, settle what it brought, decide what comes next (a
    pure function), write that in a fenced transaction. Losing the leadership raises :class:`~tandem_api.errors.Fenced`
    and ends this process; the next orchestrator goes on from the phase it finds. While etcd is away nothing moves.
    """

    def __init__(
        self, job: Job, run: Run, store: Store, identity: str, metrics: RunMetrics, traces: "Traces | None" = None
    ) -> None:
        self._job = job
        self._run = run
        self._store = store
        self._identity = identity
        self._metrics = metrics
        self._keys = JobKeys(job.namespace, job.name, job.uid)
        self._ledger = Ledger()
        self._settlement = Settlement(run, self._ledger, metrics, traces)
        self._resume_point = ResumePoint(0, None)

    async def drive(self) -> PhaseRecord:
        """Lead the job to its end; returns the last record, Succeeded or Failed."""
        async with Mirror(self._store, self._keys.prefix) as mirror:
            self._mirror = mirror
            self._leadership = leadership = await self._win_leadership()
            await self._remember_checkpoint()
            self._attendance = Attendance(mirror, self._keys, self._run, leadership)
            self._reporter = Reporter(
                self._store, mirror, self._keys, leadership, self._run, self._ledger, self._metrics
            )
            reporting = asyncio.create_task(self._reporter.report(), name="report progress")
            try:
                last = await self._lead()
                await self._reporter.publish()
                return last
            finally:
                reporting.cancel()
                await asyncio.wait([reporting])
                await leadership.lease.revoke()

    async def _remember_checkpoint(self) -> None:
        """A buffer that was lost with its volume no longer knows the checkpoint that there is; etcd still does."""
        entry = self._mirror.entries.get(self._keys.progress)
        if entry is None or (await self._run.resume_point()).checkpoint is not None:
            return
        known = Progress.model_validate_json(entry.value)
        if known.checkpoint_path is not None and known.checkpoint_iteration is not None:
            log.warning(
                "the replay buffer is new; going on from the checkpoint that etcd names",
                iteration=known.checkpoint_iteration,
                path=known.checkpoint_path,
            )
            await self._run.durable(known.checkpoint_iteration, known.checkpoint_path)

    async def _win_leadership(self) -> Leadership:
        while True:
            try:
                return await lead(self._store, self._mirror, self._keys, self._identity, LEASE_SECONDS)
            except TryAgain as error:
                log.warning("cannot lead for now", error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)

    async def _lead(self) -> PhaseRecord:
        seen = current(self._mirror.entries, self._keys)
        if seen is None:
            seen = await self._enter(None, first_phase(await self._facts()))
        else:
            await self._take_over(seen.record)
        while seen.record.name is not PhaseName.FAILED:
            try:
                following = await self._step(seen)
                if following is None:
                    break
                seen = await self._enter(seen, following)
            except RunFailed as error:
                seen = await self._enter(seen, failed(seen.record, str(error)))
        return seen.record

    async def _take_over(self, record: PhaseRecord) -> None:
        log.info("going on where another orchestrator stopped", phase=record.name, epoch=record.epoch)
        self._settlement.take_over(record, acks(self._mirror.entries, self._keys, record.epoch - 1))
        await self._prepare(record)

    async def _step(self, seen: SeenPhase) -> Next | None:
        """See a phase to its end; what follows it, or None after the last."""
        ended = await self._attendance.attend(seen.record)
        self._take_changes()
        now, running = self._attendance.now(seen.record), self._desired is DesiredState.RUNNING
        await self._settlement.settle(seen.record, ended, now, running=running)
        if seen.record.name is PhaseName.SUCCEEDED:
            return None
        if seen.record.name is PhaseName.SUSPENDED:
            await self._rest()
        return next_phase(seen.record, await self._facts(seen.record, ended))

    @property
    def _spec(self) -> RLJobSpec:
        return self._job.spec

    def _take_changes(self) -> None:
        """What the user has changed of the job counts from the next phase on."""
        job = self._job.refreshed()
        if job.spec == self._spec:
            return
        log.info("the job was changed", iterations=job.spec.iterations)
        self._job = job
        self._run.adopt(job)

    async def _rest(self) -> None:
        """Everything is saved: say so, and wait until the user wants something else than a suspended job."""
        await self._reporter.publish()
        suspended = DesiredState.SUSPENDED
        await self._mirror.until(lambda entries: True if wanted(entries, self._keys).state is not suspended else None)
        self._take_changes()

    @property
    def _desired(self) -> DesiredState:
        return wanted(self._mirror.entries, self._keys).state

    async def _facts(self, record: PhaseRecord | None = None, ended: Ended | None = None) -> Facts:
        self._resume_point = point = await self._run.resume_point()
        iteration = record.iteration if record else point.iteration
        return Facts(
            iterations=self._spec.iterations,
            desired=self._desired,
            warmup=self._spec.data.warmup is not None,
            batch_ready=self._run.batch_ready(iteration),
            evaluated=self._settlement.evaluated,
            failure=ended.failure if ended else None,
            restarts_left=record is None or record.restarts < self._spec.run_policy.max_restarts,
            durable_iteration=point.iteration if point.checkpoint else None,
            checkpoint=point.checkpoint,
        )

    # Entering a phase

    async def _enter(self, previous: SeenPhase | None, following: Next) -> SeenPhase:
        if following.name in (PhaseName.START, PhaseName.RECOVER):
            await self._attendance.gather(self._spec.hybrid.replicas, self._spec.schedule.phase_deadlines.start)
        now = time.time()
        seconds = phase_seconds(following.name, self._spec.schedule.phase_deadlines)
        checkpoint_wanted = wanted(self._mirror.entries, self._keys).checkpoint
        record = PhaseRecord(
            epoch=previous.record.epoch + 1 if previous else 1,
            iteration=following.iteration,
            name=following.name,
            weight_version=following.weight_version,
            world=following.world,
            members=tuple(range(self._spec.hybrid.replicas)),
            started=now,
            deadline=now + seconds if seconds is not None else None,
            checkpoint=following.checkpoint,
            save=saves(following, self._spec, self._resume_point, checkpoint_wanted),
            restarts=following.restarts,
            iterations=self._spec.iterations,
            reason=following.reason,
        )
        before = self._run.buffer_full_seconds
        await self._prepare(record)
        if record.deadline is not None and (paused := self._run.buffer_full_seconds - before):
            record = record.model_copy(update={"deadline": record.deadline + paused})
        seen = await self._move(previous, record)
        self._settlement.enter(record)
        log.info("phase", name=record.name, iteration=record.iteration, epoch=record.epoch, reason=record.reason)
        return seen

    async def _move(self, previous: SeenPhase | None, record: PhaseRecord) -> SeenPhase:
        """Write the phase, however long etcd is away; only the loss of our lease ends the wait."""
        again = False
        while True:
            try:
                seen = await move(self._store, self._keys, self._leadership, previous, record, again=again)
                break
            except TryAgain as error:
                again = True
                if self._leadership.lease.lost.is_set():
                    raise Fenced("the leadership of this job was lost while etcd was away") from error
                log.warning("the phase cannot move for now", name=record.name, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
        await self._forget_acks(record.epoch - 2)
        return seen

    async def _forget_acks(self, epoch: int) -> None:
        """Acks of one epoch back are what an orchestrator that takes over may need; older ones only fill etcd."""
        try:
            await self._store.delete_prefix(self._keys.acks(epoch))
        except TryAgain as error:
            log.warning("old acks were not deleted", epoch=epoch, error=str(error))

    async def _prepare(self, record: PhaseRecord) -> None:
        """What must be there before the sidecars see the phase."""
        self._attendance.begin(record)
        if record.name is PhaseName.ROLLOUT:
            await self._run.open_rollout(record.iteration, record.weight_version, record.members)
            self._run.serve(record.epoch)


def phase_seconds(name: PhaseName, deadlines: PhaseDeadlines) -> float | None:
    """How long a phase may take; None for one that has no end."""
    return {
        PhaseName.START: deadlines.start,
        PhaseName.RECOVER: deadlines.start,
        PhaseName.WARMUP: deadlines.warmup,
        PhaseName.ROLLOUT: deadlines.rollout,
        PhaseName.RELEASE: deadlines.release,
        PhaseName.TRAIN: deadlines.train,
        PhaseName.HANDOFF: deadlines.handoff,
        PhaseName.SUSPENDED: deadlines.train,
        PhaseName.SUCCEEDED: deadlines.train,
    }.get(name)


def saves(following: Next, spec: RLJobSpec, durable: ResumePoint, wanted: int | None) -> bool:
    """Whether the trainers save a checkpoint at the end of the phase ``following``.

    After a warm-up, every ``checkpoint.everyIterations``, at the end, and where it is the first state that covers
    the ``wanted`` iterations which no ``durable`` checkpoint covers.
    """
    if following.name is PhaseName.WARMUP:
        return True
    if following.name is not PhaseName.TRAIN:
        return False
    done = following.iteration + 1
    covered = durable.iteration if durable.checkpoint else -1
    asked = wanted is not None and covered < wanted <= done
    return asked or done == spec.iterations or done % spec.checkpoint.every_iterations == 0
