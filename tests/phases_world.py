# SPDX-License-Identifier: Apache-2.0
"""A job whose processes and networks fail: real drivers, workers, buffer and etcd, a proxy before each process."""

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from etcd_proxy import EtcdProxy
from etcd_server import EtcdServer
from orchestrator_world import Engine, make_job, prompt_file
from phases_history import History, Rules
from prometheus_client import CollectorRegistry

from tandem_api.errors import Fenced, TryAgain
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import Member, PhaseName, PhaseRecord
from tandem_orchestrator.driver import Driver
from tandem_orchestrator.metrics import RunMetrics
from tandem_orchestrator.run import Run
from tandem_phases.store import Condition, Lease, Store
from tandem_sidecar.metrics import MemberMetrics
from tandem_sidecar.steps import Part
from tandem_sidecar.switch import Switch
from tandem_sidecar.worker import Worker

MEMBERS = 3
_TIMEOUT = 0.5
_LONGEST_PART = 0.1
_SPEC: dict[str, Any] = {
    "iterations": 5,
    "checkpoint": {"everyIterations": 1},
    "hybrid": {"replicas": MEMBERS},
    "runPolicy": {"maxRestarts": 1000},
}


@dataclass(frozen=True, slots=True)
class Request:
    """A transaction as a process sent it."""

    sender: str
    conditions: tuple[Condition, ...]
    puts: Mapping[str, str]
    lease: Lease | None
    lasting: Mapping[str, str] | None


class NotingStore(Store):
    """A connection that notes the transactions which its process sends."""

    def __init__(self, endpoints: tuple[str, ...], process: str, note: Callable[[Request], None]) -> None:
        super().__init__(endpoints, timeout=_TIMEOUT)
        self._process = process
        self._note = note

    async def commit(
        self,
        conditions: tuple[Condition, ...],
        puts: Mapping[str, str],
        lease: Lease | None = None,
        lasting: Mapping[str, str] | None = None,
    ) -> int:
        self._note(Request(self._process, conditions, puts, lease, lasting))
        return await super().commit(conditions, puts, lease, lasting)


class Process(ABC):
    """One process of the job and its network. ``task`` is what it does; it is done when the process has ended."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.proxy = EtcdProxy(world.etcd.endpoints[0])
        self.task: asyncio.Task[Any]

    async def begin(self) -> None:
        await self.proxy.__aenter__()
        self.store = NotingStore(self.proxy.endpoints, self.name, self.world.note)
        self.task = asyncio.create_task(self.run(), name=self.name)

    @abstractmethod
    async def run(self) -> Any:
        """Live; ends as the real process would."""

    @property
    @abstractmethod
    def lease(self) -> Lease | None:
        """The lease of its place in the job, if it has had one."""

    async def die(self) -> None:
        """End without a last word: not even a lease is given back."""
        self.proxy.refuses = True
        self.proxy.cut()
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.store.__aexit__(None, None, None)
        await self.proxy.__aexit__()


class Orchestrator(Process):
    """A driver with its own view of the replay buffer on the volume that all orchestrators share."""

    serving: Run | None = None
    _driver: Driver | None = None

    @property
    def lease(self) -> Lease | None:
        leadership = getattr(self._driver, "_leadership", None)
        return leadership.lease if leadership else None

    async def run(self) -> PhaseRecord:
        run = Run(self.world.job, self.world.state)
        try:
            await run.prepare()
            self.serving = run
            metrics = RunMetrics(self.world.job.spec, self.world.state, CollectorRegistry())
            self._driver = Driver(self.world.job, run, self.store, self.name, metrics)
            return await self._driver.drive()
        finally:
            self.serving = None
            await run.stop()


class Pod(Process):
    """A sidecar's worker, whose part of each phase takes a moment."""

    _worker: Worker | None = None

    def __init__(self, world: "World", name: str, index: int) -> None:
        super().__init__(world, name)
        self.index = index

    async def run(self) -> None:
        member = Member(index=self.index, pod=self.name, uid=self.name, incarnation=self.name, address="127.0.0.1")
        metrics = MemberMetrics(CollectorRegistry())
        self._worker = Worker(self.store, self.world.keys, member, cast(Switch, self), metrics)
        await self._worker.run()

    @property
    def lease(self) -> Lease | None:
        place = self._worker._place if self._worker else None
        return place.lease if place else None

    async def _part(self, record: PhaseRecord, part: Part) -> None:
        await asyncio.sleep(self.world.random.uniform(0.0, _LONGEST_PART))
        if record.name is PhaseName.HANDOFF:
            part.digest = f"weights-{record.weight_version}"
            part.measured |= {"bytes": 8.0, "tensors": 1.0}
        if record.name is PhaseName.TRAIN:
            part.measured["loss"] = 1.0
            part.checkpoint = f"iter-{record.iteration + 1}" if record.save else None

    start = warmup = release = train = handoff = suspended = succeeded = _part

    async def rollout(self, record: PhaseRecord, _: Part) -> None:
        """Answer whatever any orchestrator leases in this epoch, until the phase moves on."""
        while True:
            for run in self.world.serving():
                engine = Engine(run, record.epoch, self.index)
                engine.incarnation = self.name
                with suppress(TryAgain, Fenced):
                    await engine.exhaust(record.weight_version)
            await asyncio.sleep(0.02)


class World:
    """The job, from :meth:`begin` to :meth:`end`; ``seed`` decides how long parts take.

    ``sent`` holds every transaction of every process, ``history`` what came of them.
    """

    def __init__(self, directory: Path, etcd: EtcdServer, name: str, seed: int) -> None:
        self.etcd = etcd
        self.job = replace(make_job(prompt_file(directory), **_SPEC), name=name)
        self.keys = JobKeys(self.job.namespace, name, self.job.uid)
        self.state = directory / "state"
        self.random = random.Random(seed)
        self.sent: list[Request] = []
        self.pods: list[Pod] = []
        self.orchestrators: list[Orchestrator] = []
        self._writers: dict[str, str] = {}
        self._stack = AsyncExitStack()
        self._started = 0

    async def begin(self) -> None:
        self._store = await self._stack.enter_async_context(Store(self.etcd.endpoints, timeout=2.0))
        self.history = History(self._store, Rules(self.keys, self._writers))
        following = asyncio.create_task(self.history.follow(), name="follow etcd's history")
        self._stack.callback(following.cancel)
        await self.tend()

    async def end(self) -> None:
        await asyncio.gather(*(process.die() for process in self.processes))
        await self._stack.aclose()

    @property
    def processes(self) -> list[Process]:
        """Those that were started and have not been made to die."""
        return [*self.pods, *self.orchestrators]

    def note(self, request: Request) -> None:
        self.sent.append(request)
        if (record := request.puts.get(self.keys.phase)) is not None:
            self._writers[record] = request.sender

    @property
    def over(self) -> bool:
        """Whether the last phase has been written."""
        phase = self.history.rules.phase
        return phase is not None and phase.name.final

    def serving(self) -> list[Run]:
        return [found.serving for found in self.orchestrators if found.serving is not None]

    async def add_pod(self, index: int) -> None:
        """A new process of this index; an older one may be alive."""
        self._started += 1
        self.pods.append(Pod(self, f"pod-{index}.{self._started}", index))
        await self.pods[-1].begin()

    async def add_orchestrator(self) -> None:
        self._started += 1
        self.orchestrators.append(Orchestrator(self, f"orchestrator.{self._started}"))
        await self.orchestrators[-1].begin()

    async def kill(self, process: Process) -> None:
        self.pods = [pod for pod in self.pods if pod is not process]
        self.orchestrators = [found for found in self.orchestrators if found is not process]
        await process.die()

    async def expire(self, process: Process) -> None:
        """Its lease ends, as if its time had passed."""
        if process.lease is not None:
            await self._store.revoke(process.lease.id)

    async def repeat(self, request: Request) -> None:
        """A request reaches etcd again, or late: its sender may have gone on, or have died."""
        with suppress(Fenced, TryAgain):
            await self._store.commit(request.conditions, request.puts, request.lease, request.lasting)

    def last_ack(self, index: int) -> Request | None:
        """The newest ack that a process of this index sent."""
        for request in reversed(self.sent):
            (place, *_) = request.puts
            if place.startswith(self.keys.prefix + "acks/") and int(place.rpartition("/")[2]) == index:
                return request
        return None

    async def restart_etcd(self) -> None:
        await asyncio.to_thread(self.etcd.stop)
        await asyncio.to_thread(self.etcd.start)

    def check(self) -> None:
        """Raises what broke: a rule of the protocol, or a process by anything else than being fenced."""
        if self.history.broken is not None:
            self.history.broken.add_note(self.history.told())
            raise self.history.broken
        for process in self.processes:
            error = process.task.exception() if process.task.done() and not process.task.cancelled() else None
            if error is not None and not isinstance(error, Fenced):
                error.add_note(self.history.told())
                raise error

    async def tend(self) -> None:
        """What Kubernetes does: a process of each kind lives."""
        for process in self.processes:
            if process.task.done():
                await self.kill(process)
        for index in set(range(MEMBERS)) - {pod.index for pod in self.pods}:
            await self.add_pod(index)
        if not self.orchestrators:
            await self.add_orchestrator()

    async def finish(self, seconds: float) -> None:
        """The network is good again, and whoever ends is started again: the run succeeds.

        Raises:
            TimeoutError: it did not, within ``seconds``.
        """
        for process in self.processes:
            process.proxy.heal()
        try:
            async with asyncio.timeout(seconds):
                while not self._succeeded:
                    self.check()
                    await self.tend()
                    await asyncio.wait([p.task for p in self.processes], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError as error:
            self.check()
            error.add_note(self.history.told())
            raise
        self.check()

    @property
    def _succeeded(self) -> bool:
        ended = (found.task for found in self.orchestrators if found.task.done() and not found.task.exception())
        return any(task.result().name is PhaseName.SUCCEEDED for task in ended)
