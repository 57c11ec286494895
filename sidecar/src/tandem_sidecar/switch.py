# SPDX-License-Identifier: Apache-2.0
"""A member's part of each phase: who holds the device, and how it changes hands (phases.md, handoff.md)."""

import asyncio
from pathlib import Path

import structlog

from tandem_api.environment import Job
from tandem_api.errors import MemberFailed, TryAgain
from tandem_api.messages.phases import PhaseRecord
from tandem_api.messages.trainer import Checkpoint, Export, FinishRun, Load, Offload, TrainerReply, TrainStep, Warmup
from tandem_api.spec.hybrid import Release
from tandem_api.spec.lifecycle import PhaseDeadlines
from tandem_api.utilisation import ROLLOUT_SECONDS
from tandem_sidecar.engine import Engine
from tandem_sidecar.memory import DeviceMemory, Residuals
from tandem_sidecar.probe import compare, mean_limit, probe_tokens
from tandem_sidecar.rollouts import Rollouts
from tandem_sidecar.steps import Part
from tandem_sidecar.trainer_client import TrainerClient

log = structlog.get_logger()

FIRST_WORLD = 1
"""Before it nobody has held the device: its engines start while the trainers import."""


class Switch:
    """The steps of every phase, for one member.

    Each method does the member's whole part of the phase it is named after, on a :class:`Part` that ends up in the
    ack. They raise :class:`MemberFailed` or :class:`TryAgain` when the part could not be done.
    """

    def __init__(
        self,
        job: Job,
        run_dir: Path,
        model: Path,
        engine: Engine,
        trainer: TrainerClient,
        rollouts: Rollouts,
        memory: DeviceMemory | None,
    ) -> None:
        self._job = job
        self._run_dir = run_dir
        self._engine = engine
        self._trainer = trainer
        self._rollouts = rollouts
        self._memory = memory
        self._residuals = Residuals(job.spec.engine.release_budget)
        self._released = True
        self._serving: int | None = None
        self._probe = probe_tokens(model, job.spec.seed)

    @property
    def _deadlines(self) -> PhaseDeadlines:
        """As they are now: they may be changed while the job runs."""
        self._job = self._job.refreshed()
        return self._job.spec.schedule.phase_deadlines

    async def start(self, record: PhaseRecord, part: Part) -> None:
        """Bring the engine up with the device to itself, release it, then let the trainer load."""
        await self._flush(part)
        if record.world > FIRST_WORLD:
            await self._take_trainer_off(record, part)
        await self._ensure_engine(part)
        await self._free_device(part)
        with part.step("load"):
            reply = await self._trainer.load(
                Load(epoch=record.epoch, checkpoint=record.checkpoint), self._deadlines.start
            )
        _take(part, reply)

    async def _take_trainer_off(self, record: PhaseRecord, part: Part) -> None:
        """An engine sizes its caches from the free memory it finds: whatever the trainer is doing, it makes room."""
        with part.step("offload"):
            await self._trainer.let_go(Offload(epoch=record.epoch), self._deadlines.start)

    async def _flush(self, part: Part) -> None:
        """Bring back what the engine has generated. One that cannot be paused is ended: it might go on by itself."""
        with part.step("drain"):
            try:
                part.measured["cutShort"] = float(await self._rollouts.drain())
            except (TryAgain, MemberFailed) as error:
                log.warning("the engine cannot be paused; it is ended", error=str(error))
                await self._engine.stop()
        self._tell_rollout(part)

    async def drain_if_alive(self) -> None:
        """What a living engine has generated is brought back; a dead one has nothing."""
        try:
            await self._rollouts.drain()
        except (TryAgain, MemberFailed) as error:
            log.warning("the engine's unfinished work is lost with it", error=str(error))

    def _tell_rollout(self, part: Part) -> None:
        """How long the engine was busy is known once it is drained: it goes with the ack of the phase after."""
        busy = self._rollouts.busy_seconds
        if busy is not None:
            part.measured[ROLLOUT_SECONDS] = busy

    async def _ensure_engine(self, part: Part) -> None:
        """An engine whose core answers, started afresh if there is none."""
        self._released, self._serving = False, None
        await self._end_dead_engine()
        if not self._engine.running:
            with part.step("engineStart"):
                await self._engine.start(self._deadlines.start)
                self._residuals.begin()
                await self._engine.client.prepare_handoff(self._run_dir)

    async def _end_dead_engine(self) -> None:
        if not self._engine.running:
            return
        try:
            await self._engine.client.handoff_reports()
        except (TryAgain, MemberFailed) as error:
            log.warning("the engine's core is dead; it is started again", error=str(error))
            await self._engine.stop()

    async def rollout(self, record: PhaseRecord, part: Part) -> None:
        """Generate until the phase moves on: only a failing engine ends this."""
        if self._serving != record.weight_version:
            raise MemberFailed(f"the engine did not get weight version {record.weight_version} from this process")
        watching = asyncio.create_task(self._watch_engine(), name="watch the engine's core")
        try:
            raise MemberFailed(await self._rollouts.generate(record.epoch, record.weight_version))
        finally:
            watching.cancel()

    async def _watch_engine(self) -> None:
        self._rollouts.fail(await self._engine.failure())

    async def release(self, record: PhaseRecord, part: Part) -> None:
        """Abort what runs keeping its tokens, free the engine's memory, and measure what is left."""
        await self._flush(part)
        await self._free_device(part)

    async def _free_device(self, part: Part) -> None:
        part.measured["residualBytes"] = 0.0
        policy = self._job.spec.engine.release
        if self._memory is None or policy is Release.KEEP:
            self._released = True
            return
        part.measured["bytesBefore"] = float(self._memory.used())
        if policy is Release.SLEEP and self._engine.running:
            with part.step("sleep"):
                await self._sleep_or_stop()
        residual = self._memory.used()
        self._residuals.note(residual)
        budget = self._job.spec.engine.release_budget
        if self._engine.running and (policy is Release.STOP or residual > budget or self._residuals.grow):
            log.warning("the engine is stopped to free the device", residual=residual, policy=policy, budget=budget)
            with part.step("stop"):
                await self._engine.stop()
            residual = self._memory.used()
            if residual > budget:
                log.warning(
                    "the device is not free without the engine either: raise spec.engine.releaseBudget above what "
                    "others hold, or each release stops the engine",
                    residual=residual,
                    budget=budget,
                )
        part.measured["residualBytes"] = float(residual)
        self._released = True

    async def _sleep_or_stop(self) -> None:
        """Put the engine to sleep. One whose update broke off half way cannot: it has no weights to let go of."""
        try:
            await self._engine.client.sleep()
        except (TryAgain, MemberFailed) as error:
            log.warning("the engine cannot sleep; it is ended", error=str(error))
            await self._engine.stop()

    async def _take_device(self, record: PhaseRecord, part: Part) -> None:
        """The trainer is about to come: a part that was given up half way may have left the engine on the device."""
        if not self._released:
            log.warning("the engine was not released; it is now", name=record.name)
            await self.release(record, part)

    async def warmup(self, record: PhaseRecord, part: Part) -> None:
        await self._take_device(record, part)
        with part.step("warmup"):
            reply = await self._trainer.ask(Warmup(epoch=record.epoch, save=record.save), self._deadlines.warmup)
        _take(part, reply)

    async def train(self, record: PhaseRecord, part: Part) -> None:
        await self._take_device(record, part)
        command = TrainStep(
            epoch=record.epoch,
            iteration=record.iteration,
            weight_version=record.weight_version,
            iterations=record.iterations,
            save=record.save,
        )
        with part.step("train"):
            reply = await self._trainer.ask(command, self._deadlines.train)
        _take(part, reply)

    async def handoff(self, record: PhaseRecord, part: Part) -> None:
        """Weights from trainer to engine, bucket by bucket, then proof that they arrived."""
        timeout = self._deadlines.handoff
        client = self._engine.client
        await self._end_dead_engine()
        if not self._engine.running:
            await self._take_trainer_off(record, part)
            await self._ensure_engine(part)
            if self._memory is not None:
                with part.step("sleep"):
                    await client.sleep()
        self._released, self._serving = False, None
        if self._memory is not None:
            with part.step("wakeWeights"):
                await client.wake_up("weights")
        export = Export(epoch=record.epoch, weight_version=record.weight_version, timeout=timeout, probe=self._probe)
        with part.step("transfer"):
            try:
                async with asyncio.TaskGroup() as group:
                    exporting = group.create_task(self._trainer.ask(export, timeout))
                    group.create_task(self._receive(record.weight_version, timeout))
            except ExceptionGroup as failures:
                raise MemberFailed("; ".join(str(failure) for failure in failures.exceptions)) from failures
        _take(part, exporting.result())
        await self._prove(record, part, exporting.result())

    async def _receive(self, version: int, timeout: float) -> None:
        client = self._engine.client
        await client.start_update()
        await client.receive(version, timeout)

    async def _prove(self, record: PhaseRecord, part: Part, exported: TrainerReply) -> None:
        client = self._engine.client
        with part.step("finish"):
            await client.finish_update(record.weight_version)
        with part.step("verify"):
            reports = await client.handoff_reports()
        for report in reports:
            if not report.in_service or report.digest != exported.digest:
                raise MemberFailed(
                    f"an engine worker holds weights with digest {report.digest}, the trainer sent {exported.digest}: "
                    f"{report.error or 'they differ'}"
                )
        part.digest = exported.digest
        part.measured["bytes"] = float(reports[0].bytes)
        part.measured["tensors"] = float(reports[0].tensors)
        if self._memory is not None:
            with part.step("wakeCache"):
                await client.wake_up("kv_cache")
        with part.step("probe"):
            await client.resume()
            scored = await client.score(self._probe)
        spec = self._job.spec
        limit = mean_limit(spec.model.dtype, spec.engine.extra_args)
        part.measured["probeDifference"] = compare(exported.probe_logprobs, scored, limit)
        self._serving = record.weight_version

    async def suspended(self, record: PhaseRecord, part: Part) -> None:
        await self._flush(part)
        with part.step("checkpoint"):
            command = Checkpoint(epoch=record.epoch, iteration=record.iteration)
            reply = await self._trainer.ask(command, self._deadlines.train)
        _take(part, reply)

    async def succeeded(self, record: PhaseRecord, part: Part) -> None:
        """End the engine, then the trainer: with its last reply this pod is complete, so nothing may come after."""
        await self._flush(part)
        with part.step("stop"):
            await self._engine.stop()
        command = FinishRun(epoch=record.epoch, export=self._job.spec.checkpoint.export)
        with part.step("export"):
            try:
                reply = await self._trainer.ask(command, self._deadlines.train)
            except MemberFailed as error:
                log.warning("the trainer lost the final weights; they are loaded again", error=str(error))
                await self._trainer.load(Load(epoch=record.epoch, checkpoint=record.checkpoint), self._deadlines.train)
                reply = await self._trainer.ask(command, self._deadlines.train)
        _take(part, reply)


def _take(part: Part, reply: TrainerReply) -> None:
    """What the trainer measured becomes part of the ack."""
    part.measured.update(reply.measured)
    part.measured.update({f"{name}Seconds": seconds for name, seconds in reply.seconds.items()})
    part.checkpoint = reply.path or part.checkpoint
