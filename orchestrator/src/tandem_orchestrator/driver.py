# SPDX-License-Identifier: Apache-2.0
"""The phase driver: leads the job, and moves it from phase to phase until it is over (phases.md)."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from tandem_api.environment import Job
from tandem_api.errors import Fenced, RunFailed, TryAgain
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import (
    Ack,
    Desired,
    DesiredState,
    Outcome,
    PhaseName,
    PhaseRecord,
    Progress,
)
from tandem_api.spec import RLJobSpec
from tandem_orchestrator.ledger import Ledger, timeline_lines
from tandem_orchestrator.metrics import RunMetrics
from tandem_orchestrator.run import ResumePoint, Run
from tandem_phases.leadership import lead
from tandem_phases.membership import acks, members
from tandem_phases.mirror import Mirror
from tandem_phases.phase import SeenPhase, current, move
from tandem_phases.store import Entry, Store
from tandem_phases.transitions import Facts, Next, failed, first_phase, next_phase

if TYPE_CHECKING:
    # OpenTelemetry is imported only where a collector is named.
    from tandem_orchestrator.traces import Traces

log = structlog.get_logger()

LEASE_SECONDS = 10.0
_PROGRESS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a phase ended: ``failure`` says why it did not end well."""

    acks: Mapping[int, Ack]
    failure: str | None = None


class Driver:
    """Moves one job.

    The loop is :meth:`drive`: attend to the phase until it ends, settle what it brought, decide what comes next (a
    pure function), write that in a fenced transaction. Losing the leadership raises :class:`~tandem_api.errors.Fenced`
    and ends this process; the next orchestrator goes on from the phase it finds.
    """

    def __init__(
        self, job: Job, run: Run, store: Store, identity: str, metrics: RunMetrics, traces: "Traces | None" = None
    ) -> None:
        self._job = job
        self._spec = job.spec
        self._run = run
        self._store = store
        self._identity = identity
        self._metrics = metrics
        self._traces = traces
        self._keys = JobKeys(job.namespace, job.name, job.uid)
        self._ledger = Ledger()
        self._incarnations: dict[int, str] = {}
        self._restarts = 0
        self._resume_point = ResumePoint(0, None)
        self._evaluated = False

    async def drive(self) -> PhaseRecord:
        """Lead the job to its end; returns the last record, Succeeded or Failed."""
        async with Mirror(self._store, self._keys.prefix) as mirror:
            self._mirror = mirror
            self._leadership = await lead(self._store, mirror, self._keys, self._identity, LEASE_SECONDS)
            reporting = asyncio.create_task(self._report(), name="report progress")
            try:
                return await self._lead()
            finally:
                reporting.cancel()
                await asyncio.wait([reporting])
                await self._publish()
                await self._leadership.lease.revoke()

    async def _lead(self) -> PhaseRecord:
        seen = current(self._mirror.entries, self._keys)
        if seen is None:
            seen = await self._enter(None, first_phase(await self._facts()))
        else:
            log.info("going on where another orchestrator stopped", phase=seen.record.name, epoch=seen.record.epoch)
            await self._prepare(seen.record)
            self._metrics.entered(seen.record)
        while seen.record.name is not PhaseName.FAILED:
            try:
                following = await self._step(seen)
                if following is None:
                    break
                seen = await self._enter(seen, following)
            except RunFailed as error:
                seen = await self._enter(seen, failed(seen.record, str(error)))
        return seen.record

    async def _step(self, seen: SeenPhase) -> Next | None:
        """See a phase to its end; what follows it, or None after the last."""
        ended = await self._attend(seen)
        await self._settle(seen.record, ended)
        if seen.record.name is PhaseName.SUCCEEDED:
            return None
        if seen.record.name is PhaseName.SUSPENDED:
            await self._rest()
        return next_phase(seen.record, await self._facts(seen.record, ended))

    async def _rest(self) -> None:
        """Everything is saved: say so, and wait until the user wants something else than a suspended job."""
        self._resume_point = await self._run.resume_point()
        await self._publish()
        suspended = DesiredState.SUSPENDED
        await self._mirror.until(lambda entries: True if self._desired(entries) is not suspended else None)

    async def _facts(self, record: PhaseRecord | None = None, ended: Ended | None = None) -> Facts:
        self._resume_point = point = await self._run.resume_point()
        iteration = record.iteration if record else point.iteration
        return Facts(
            iterations=self._spec.iterations,
            desired=self._desired(self._mirror.entries),
            warmup=self._spec.data.warmup is not None,
            batch_ready=self._run.batch_ready(iteration),
            evaluated=self._evaluated,
            failure=ended.failure if ended else None,
            restarts_left=self._restarts < self._spec.run_policy.max_restarts,
            durable_iteration=point.iteration if point.checkpoint else None,
            checkpoint=point.checkpoint,
        )

    # Entering a phase

    async def _enter(self, previous: SeenPhase | None, following: Next) -> SeenPhase:
        if following.name is PhaseName.RECOVER:
            self._restarts += 1
        if following.name in (PhaseName.START, PhaseName.RECOVER):
            await self._all_members(following)
        now = time.time()
        record = PhaseRecord(
            epoch=previous.record.epoch + 1 if previous else 1,
            iteration=following.iteration,
            name=following.name,
            weight_version=following.weight_version,
            world=following.world,
            members=tuple(range(self._spec.hybrid.replicas)),
            started=now,
            deadline=self._deadline(following.name, now),
            checkpoint=following.checkpoint,
            save=saves(following, self._spec, self._resume_point, self._wanted(self._mirror.entries).checkpoint),
            reason=following.reason,
        )
        await self._prepare(record)
        seen = await move(self._store, self._keys, self._leadership, previous, record)
        self._metrics.entered(record)
        log.info("phase", name=record.name, iteration=record.iteration, epoch=record.epoch, reason=record.reason)
        return seen

    async def _all_members(self, following: Next) -> None:
        """Wait until every member is there: those that were lost come back as new incarnations."""
        wanted = range(self._spec.hybrid.replicas)

        def present(entries: Mapping[str, Entry]) -> bool | None:
            return all(index in members(entries, self._keys) for index in wanted) or None

        try:
            await self._mirror.until(present, self._spec.schedule.phase_deadlines.start)
        except TimeoutError:
            missing = set(wanted) - set(members(self._mirror.entries, self._keys))
            raise RunFailed(f"{following.name}: members {sorted(missing)} did not join in time") from None

    async def _prepare(self, record: PhaseRecord) -> None:
        """What must be there before the sidecars see the phase."""
        joined = members(self._mirror.entries, self._keys)
        self._incarnations = {index: joined[index].incarnation for index in record.members if index in joined}
        if record.name in (PhaseName.START, PhaseName.RECOVER, PhaseName.ROLLOUT):
            self._ledger.begin_iteration(record.started)
        if record.name is PhaseName.ROLLOUT:
            await self._run.open_rollout(record.iteration, record.weight_version, record.members)
            self._run.serve(record.epoch)

    def _deadline(self, name: PhaseName, now: float) -> float | None:
        deadlines = self._spec.schedule.phase_deadlines
        seconds = {
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
        return now + seconds if seconds is not None else None

    # Attending to a phase

    async def _attend(self, seen: SeenPhase) -> Ended:
        """Wait until the phase ends: well, by a failure, by its deadline, or because the user wants something else."""
        record = seen.record
        waiting = {asyncio.create_task(self._mirror.until(lambda entries: self._verdict(record, entries)))}
        if record.name is PhaseName.ROLLOUT:
            waiting.add(asyncio.create_task(self._rolled_out(record)))
        lost = asyncio.create_task(self._leadership.lease.lost.wait())
        patience = None if record.deadline is None else max(0.0, record.deadline - time.time())
        try:
            await asyncio.wait({*waiting, lost}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                # Not a failure of the run: etcd may still hold our key, so that a write of Failed would be taken.
                raise Fenced("the leadership of this job was lost")
            for task in waiting:
                if task.done():
                    return task.result()
        finally:
            for pending in (*waiting, lost):
                pending.cancel()
        reported = acks(self._mirror.entries, self._keys, record.epoch)
        if record.name is PhaseName.ROLLOUT:
            log.warning("the rollout's deadline has passed; what is finished is trained on", iteration=record.iteration)
            return Ended(reported)
        late = sorted(set(record.members) - set(reported))
        return Ended(reported, f"{record.name} passed its deadline; members {late} did not ack")

    async def _rolled_out(self, record: PhaseRecord) -> Ended:
        await self._run.rollout_full()
        return Ended(acks(self._mirror.entries, self._keys, record.epoch))

    def _verdict(self, record: PhaseRecord, entries: Mapping[str, Entry]) -> Ended | None:
        reported = acks(entries, self._keys, record.epoch)
        desired = self._desired(entries)
        for ack in reported.values():
            if ack.outcome is Outcome.FAILED:
                return Ended(reported, f"member {ack.index}: {ack.error}")
        joined = members(entries, self._keys)
        for index, incarnation in self._incarnations.items():
            if record.name is not PhaseName.SUCCEEDED and (
                index not in joined or joined[index].incarnation != incarnation
            ):
                return Ended(reported, f"member {index} was lost during {record.name}")
        if desired is DesiredState.STOPPED or (desired is DesiredState.SUSPENDED and record.name is PhaseName.ROLLOUT):
            return Ended(reported)
        if record.name is PhaseName.ROLLOUT or not set(record.members) <= set(reported):
            return None
        return Ended(reported, _disagreement(reported) if record.name is PhaseName.HANDOFF else None)

    def _wanted(self, entries: Mapping[str, Entry]) -> Desired:
        entry = entries.get(self._keys.desired)
        return Desired.model_validate_json(entry.value) if entry else Desired(state=DesiredState.RUNNING)

    def _desired(self, entries: Mapping[str, Entry]) -> DesiredState:
        return self._wanted(entries).state

    # Settling a phase

    async def _settle(self, record: PhaseRecord, ended: Ended) -> None:
        """Book what the phase brought: times, numbers, batches, checkpoints."""
        now = time.time()
        self._ledger.leave(record, now, ended.acks)
        lines = timeline_lines(record, ended.acks, now)
        for line in lines:
            self._run.timeline.write(line)
        self._metrics.left(record, ended.acks, lines, failed=ended.failure is not None)
        if ended.failure is not None:
            log.error("the phase failed", name=record.name, iteration=record.iteration, failure=ended.failure)
            return
        match record.name:
            case PhaseName.ROLLOUT if record.iteration >= self._spec.iterations:
                await self._close_rollout()
                self._write_metrics(record.iteration, record.weight_version, now)
                self._evaluated = self._run.rollout_complete
            case PhaseName.RELEASE:
        if self._traces is not None:
            self._traces.left(lines, ended.failure)
                await self._close_rollout()
            case PhaseName.HANDOFF if self._ledger.trained:
                self._write_metrics(record.iteration - 1, record.weight_version - 1, now)
            case PhaseName.TRAIN:
                await self._durable(record.iteration + 1, ended)
            case PhaseName.WARMUP | PhaseName.SUSPENDED:
                await self._durable(record.iteration, ended)

    async def _close_rollout(self) -> None:
        """Write the batch, unless the user suspends an iteration that is not complete: it goes on when resumed."""
        suspending = self._desired(self._mirror.entries) is not DesiredState.RUNNING
        if suspending and not self._run.rollout_complete:
            return
        await self._run.close_rollout()

    async def _durable(self, iteration: int, ended: Ended) -> None:
        saved = next((ack.checkpoint for ack in ended.acks.values() if ack.checkpoint), None)
        if saved is not None:
            await self._run.durable(iteration, saved)
            log.info("checkpoint is durable", iteration=iteration, path=saved)

    def _write_metrics(self, iteration: int, weight_version: int, now: float) -> None:
        batch, accuracy = self._run.batch_summary(iteration), self._run.accuracy(iteration)
        line = self._ledger.line(weight_version, batch, accuracy, now)
        self._run.trained(iteration, line)
        self._metrics.learned(line, batch)

    # Reporting

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            await self._publish()

    async def _publish(self) -> None:
        seen = current(self._mirror.entries, self._keys)
        if seen is None:
            return
        progress = await self._progress(seen.record)
        self._metrics.progressed(progress, self._run.buffer_full)
        try:
            await self._store.put(self._keys.progress, progress.wire())
        except TryAgain as error:
            log.warning("progress was not written", error=str(error))

    async def _progress(self, record: PhaseRecord) -> Progress:
        lines = self._run.metrics.lines
        last = lines[-1] if lines else {}
        done, wanted = self._run.rollout_done()
        return Progress(
            iteration=record.iteration,
            iterations=self._spec.iterations,
            reward=last.get("rewardMean"),
            eval_accuracy=next((a for line in reversed(lines) if (a := line["evalAccuracy"]) is not None), None),
            tokens_per_second=last.get("tokensPerSecond"),
            rollout_done=done,
            rollout_wanted=wanted,
            buffer=await self._run.buffer_counts(),
            phase_seconds=dict(self._ledger.total),
            last_switch=self._ledger.last_switch,
            checkpoint_iteration=self._resume_point.iteration if self._resume_point.checkpoint else None,
            checkpoint_path=self._resume_point.checkpoint,
            skipped_records=self._run.skipped_records,
            error=record.reason if record.name in (PhaseName.FAILED, PhaseName.RECOVER) else None,
        )


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


def _disagreement(reported: Mapping[int, Ack]) -> str | None:
    """Why the engines do not all serve the same weights, if so."""
    digests = {ack.digest for ack in reported.values()}
    if len(digests) == 1:
        return None
    return "the engines serve different weights: " + ", ".join(f"{a.index}: {a.digest}" for a in reported.values())
