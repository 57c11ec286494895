# SPDX-License-Identifier: Apache-2.0
"""An operator's work for one job on this machine: observe, decide as the operator would, carry it out."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import structlog

from tandem_api.errors import TryAgain
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import Desired, DesiredState, PhaseName, PhaseRecord, Progress
from tandem_api.rljob import RLJobObject
from tandem_api.status import ConditionType, JobPhase, RLJobStatus
from tandem_cli.local.kubelet import Kubelet
from tandem_cli.local.node import ContainerExit
from tandem_cli.run.crash_loops import CrashLoops
from tandem_cli.run.directory import RunDirectory
from tandem_cli.run.display import Display
from tandem_cli.run.interrupts import Interrupts
from tandem_cli.run.view import Pace, View
from tandem_operator.observed import Observed, Workload
from tandem_operator.observed import pod as observed_pod
from tandem_operator.observed import workload as observed_workload
from tandem_operator.policy import Decision, decide
from tandem_phases.membership import acks
from tandem_phases.mirror import Mirror
from tandem_phases.phase import current
from tandem_phases.store import Store

log = structlog.get_logger()

_REDRAW_SECONDS = 0.5
_FINISH_SECONDS = 60.0
_BOOKING_SECONDS = 5.0
_ITERATION = (JobPhase.ROLLOUT, JobPhase.RELEASE, JobPhase.TRAIN, JobPhase.HANDOFF)
_NOTHING_TO_SAVE = (PhaseName.START, PhaseName.RECOVER)


class End(Enum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SUSPENDED = "suspended"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended.

    ``wrong_input``: what the user gave turned out to be wrong. ``failed_logs``: of the containers that ended with an
    error, oldest first.
    """

    end: End
    status: RLJobStatus
    reason: str = ""
    wrong_input: bool = False
    failed_logs: tuple[Path, ...] = ()


class Driver:
    """Carries the operator's decisions out on the local kubelet, until the run has ended or is saved.

    Status is written to status.json at each change; what is wanted of the processes goes to etcd, as in a cluster.
    """

    def __init__(self, job: RLJobObject, directory: RunDirectory, display: Display, interrupts: Interrupts) -> None:
        self._job = job
        self._directory = directory
        self._display = display
        self._interrupts = interrupts
        self._keys = JobKeys(job.metadata.namespace, job.metadata.name, job.metadata.uid)
        self._desired: DesiredState | None = None
        self._written: RLJobStatus | None = None
        self._status_waits = False
        self._pace = Pace()
        self._began = time.monotonic()
        self._accuracy_before = job.status.accuracy
        self._crash_loops = CrashLoops()
        self._failed_logs: list[Path] = []
        self._acked = 0.0
        self.changed = asyncio.Event()

    def on_exit(self, end: ContainerExit) -> None:
        """A container's process ended."""
        if end.status == 0 or self._interrupts.asked:
            return
        self._failed_logs.append(self._directory.logs / f"{end.pod}-{end.container}.log")
        self._crash_loops.note(end)
        then = "; starting it again" if end.restarting else ""
        self._display.note(f"{end.container} of {end.pod} ended with status {end.status}{then}")

    async def run(self, kubelet: Kubelet, store: Store) -> Ending:
        """Drive the job to its end; its pods have ended when this returns, except after an abort."""
        async with Mirror(store, self._keys.prefix) as mirror:
            following = asyncio.create_task(self._follow(mirror))
            try:
                return await self._run(kubelet, store, mirror)
            finally:
                following.cancel()

    async def _run(self, kubelet: Kubelet, store: Store, mirror: Mirror) -> Ending:
        while True:
            self.changed.clear()
            observed = self._observe(kubelet, mirror)
            decision = decide(self._job, observed, time.time())
            self._record(decision.status, observed)
            await self._ask(store, decision.desired)
            if self._interrupts.asked and self._job.spec.run_policy.suspend is False:
                self._job = _suspended(self._job)
            elif (end := self._end(decision, observed, mirror)) is not None:
                return await self._finish(end, decision, kubelet)
            await self._wait()

    def _observe(self, kubelet: Kubelet, mirror: Mirror) -> Observed:
        seen = current(mirror.entries, self._keys)
        progress = mirror.entries.get(self._keys.progress)
        return Observed(
            pods=tuple(observed_pod(pod.manifest) for pod in kubelet.pods),
            workloads=tuple(self._workload(observed_workload(raw, "")) for raw in kubelet.jobs),
            phase=seen.record if seen else None,
            progress=Progress.model_validate_json(progress.value) if progress else None,
        )

    def _workload(self, workload: Workload) -> Workload:
        """A crash loop that a cluster would leave to its user's patience ends a local run."""
        loop = self._crash_loops.of(workload.name)
        return replace(workload, failed=loop) if loop and not workload.failed else workload

    def _record(self, status: RLJobStatus, observed: Observed) -> None:
        self._job = self._job.model_copy(update={"status": status})
        if status != self._written:
            self._write(status)
        self._accuracy_before = self._accuracy_before if self._accuracy_before is not None else status.accuracy
        self._display.show(self._view(status, observed.progress))

    def _write(self, status: RLJobStatus) -> None:
        """The file is for others to read: where there is no room for it the run goes on, and a later look writes it."""
        try:
            self._directory.write_status(status)
        except OSError as error:
            if not self._status_waits:
                self._display.note(f"{self._directory.status} cannot be written: {error.strerror}; the run goes on")
            self._status_waits = True
        else:
            self._written, self._status_waits = status, False

    def _view(self, status: RLJobStatus, progress: Progress | None) -> View:
        iterations = self._job.spec.iterations
        now = time.monotonic()
        in_rollout = status.phase is JobPhase.ROLLOUT and progress is not None and progress.rollout_wanted
        return View(
            phase=status.phase,
            iteration=status.iteration,
            iterations=iterations,
            stopping=self._interrupts.asked,
            phase_share=progress.rollout_done / progress.rollout_wanted if in_rollout and progress else None,
            reward=status.reward,
            accuracy=status.accuracy,
            accuracy_before=self._accuracy_before,
            tokens_per_second=progress.tokens_per_second if progress else None,
            to_train_seconds=status.last_switch.to_train_seconds,
            to_rollout_seconds=status.last_switch.to_rollout_seconds,
            seconds=now - self._began,
            seconds_left=self._pace.left(status.iteration, iterations, now) if status.phase in _ITERATION else None,
            restarts=status.restarts,
        )

    async def _ask(self, store: Store, desired: DesiredState) -> None:
        if desired is self._desired:
            return
        try:
            await store.put(self._keys.desired, Desired(state=desired).wire())
        except TryAgain as error:
            log.warning("etcd did not take what is wanted; asking again", error=str(error))
            return
        self._desired = desired

    def _end(self, decision: Decision, observed: Observed, mirror: Mirror) -> End | None:
        if not decision.active:
            return End.SUCCEEDED if decision.status.phase is JobPhase.SUCCEEDED else End.FAILED
        if not self._interrupts.asked:
            return None
        if self._interrupts.insisted:
            return End.ABORTED
        record = observed.phase
        if record is None or record.name in _NOTHING_TO_SAVE:
            return End.SUSPENDED
        return End.SUSPENDED if decision.suspension.hybrid and self._saved(record, observed, mirror) else None

    def _saved(self, record: PhaseRecord, observed: Observed, mirror: Mirror) -> bool:
        """Whether every member has done its part of being suspended and the checkpoint is booked, or time is up."""
        if record.deadline is not None and time.time() > record.deadline:
            return True
        done = acks(mirror.entries, self._keys, record.epoch)
        if not set(record.members) <= done.keys():
            return False
        if not any(ack.checkpoint for ack in done.values()):
            return True
        booked = observed.progress.checkpoint_iteration if observed.progress else None
        self._acked = self._acked or time.monotonic()
        return booked == record.iteration or time.monotonic() - self._acked > _BOOKING_SECONDS

    async def _finish(self, end: End, decision: Decision, kubelet: Kubelet) -> Ending:
        """End the pods; a second interrupt cuts this short."""
        if end is End.SUCCEEDED:
            # They end by themselves once they have written the final weights and closed their files.
            await self._unless_insisted(asyncio.wait_for(kubelet.wait(), _FINISH_SECONDS))
        if end is not End.ABORTED:
            self._interrupts.ask()
            await self._unless_insisted(kubelet.stop())
        if end is End.SUSPENDED:
            rest = decision.status.model_copy(update={"phase": JobPhase.SUSPENDED})
            self._directory.write_status(rest)
        wrong = self._crash_loops.wrong_input
        return Ending(end, decision.status, _reason(decision.status), wrong, tuple(self._failed_logs))

    async def _unless_insisted(self, ending: "Awaitable[object]") -> None:
        task = asyncio.ensure_future(ending)
        insisting = asyncio.create_task(self._interrupts.insistence.wait())
        await asyncio.wait({task, insisting}, return_when=asyncio.FIRST_COMPLETED)
        insisting.cancel()
        task.cancel()
        await asyncio.gather(task, insisting, return_exceptions=True)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_REDRAW_SECONDS):
                await self.changed.wait()
        except TimeoutError:
            return

    async def _follow(self, mirror: Mirror) -> None:
        """Say so whenever anything under the job's prefix changes."""
        seen: dict[str, int] = {}
        while True:
            seen = await mirror.until(
                lambda entries, seen=seen: (  # type: ignore[misc]
                    now if (now := {key: entry.modified for key, entry in entries.items()}) != seen else None
                )
            )
            self.changed.set()


def _suspended(job: RLJobObject) -> RLJobObject:
    policy = job.spec.run_policy.model_copy(update={"suspend": True})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"run_policy": policy})})


def _reason(status: RLJobStatus) -> str:
    return next((found.message for found in status.conditions if found.type is ConditionType.FAILED), "")
