# SPDX-License-Identifier: Apache-2.0
"""A job without models: the real driver, buffer and sidecar workers on a real etcd, with pods that follow a script."""

import asyncio
import json
import urllib.request
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from etcd_server import EtcdServer
from orchestrator_world import Engine, make_job, prompt_file
from prometheus_client import CollectorRegistry
from waiting import eventually

from tandem_api.environment import Job
from tandem_api.errors import MemberFailed
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import Member, PhaseName, PhaseRecord
from tandem_orchestrator.driver import Driver
from tandem_orchestrator.metrics import RunMetrics
from tandem_orchestrator.run import Run
from tandem_phases.mirror import Mirror
from tandem_phases.phase import current
from tandem_phases.store import Store
from tandem_sidecar.metrics import MemberMetrics
from tandem_sidecar.steps import Part
from tandem_sidecar.worker import Worker

SOON = 120.0
Script = Callable[["Pod", PhaseRecord, Part], Awaitable[None]]


class Pod:
    """One member: a real worker whose parts are done by ``script``, or at once where it says nothing of a phase."""

    def __init__(self, job: "JobOfPods", index: int, incarnation: str, script: dict[PhaseName, Script]) -> None:
        self.job = job
        self.incarnation = incarnation
        self.engine = Engine(job.run, 0, index)
        self.engine.incarnation = incarnation
        self.parts: list[PhaseName] = []
        self._index = index
        self._script = script
        self.store = Store(job.endpoints)
        member = Member(index=index, pod=f"pod-{index}", uid=incarnation, incarnation=incarnation, address="127.0.0.1")
        self.worker = Worker(self.store, job.keys, member, self, MemberMetrics(CollectorRegistry()))  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.worker.run(), name=f"pod {incarnation}")

    def __getattr__(self, name: str) -> Any:
        """``start``, ``train`` and so on, as the worker calls them."""

        async def part(record: PhaseRecord, part: Part) -> None:
            self.parts.append(record.name)
            await self._script.get(record.name, _STANDARD.get(record.name, _at_once))(self, record, part)

        return part

    async def kill(self) -> None:
        """The process is gone; its lease runs out at once, as if its time had passed."""
        place = self.worker._place
        self.task.cancel()
        await asyncio.wait([self.task])
        if place is not None:
            await place.lease.revoke()

    async def close(self) -> None:
        await self.kill()
        await self.store.__aexit__(None, None, None)


async def _at_once(_: Pod, __: PhaseRecord, ___: Part) -> None:
    return


async def generate(pod: Pod, record: PhaseRecord, _: Part) -> None:
    """Answer whatever can be leased, until the phase moves on."""
    pod.engine.epoch = record.epoch
    while True:
        await pod.engine.exhaust(record.weight_version)
        await asyncio.sleep(0.05)


async def hoard(pod: Pod, record: PhaseRecord, _: Part) -> None:
    """Lease what there is, as soon as there is something, and answer nothing."""
    pod.engine.epoch = record.epoch
    await eventually(pod.engine.lease)
    pod.job.hoarded.set()
    await asyncio.Event().wait()


async def fail(_: Pod, __: PhaseRecord, ___: Part) -> None:
    raise MemberFailed("the script says so")


async def hand_over(_: Pod, record: PhaseRecord, part: Part) -> None:
    """Say that the weights of this version are in service."""
    part.digest = f"weights-{record.weight_version}"
    part.measured |= {"bytes": 8.0, "tensors": 1.0}


async def train(_: Pod, record: PhaseRecord, part: Part) -> None:
    """Say that a step was taken, and a checkpoint saved where one is asked for."""
    part.measured["loss"] = 1.0
    part.checkpoint = f"iter-{record.iteration + 1}" if record.save else None


_STANDARD: dict[PhaseName, Script] = {
    PhaseName.ROLLOUT: generate,
    PhaseName.HANDOFF: hand_over,
    PhaseName.TRAIN: train,
}
_SPEC: dict[str, Any] = {
    "iterations": 2,
    "checkpoint": {"everyIterations": 1},
    "hybrid": {"replicas": 2},
}


class JobOfPods:
    """The job: ``drive`` starts its orchestrator, ``pod`` a member. Use as an async context."""

    def __init__(self, directory: Path, etcd: EtcdServer, **parts: Any) -> None:
        self.job: Job = make_job(prompt_file(directory), **{**_SPEC, **parts})
        self.keys = JobKeys(self.job.namespace, directory.name, self.job.uid)
        self.endpoints = etcd.endpoints
        self.run = Run(self.job, directory / "state")
        self.hoarded = asyncio.Event()
        self._directory = directory
        self._stack = AsyncExitStack()
        self._started: dict[int, int] = defaultdict(int)

    async def __aenter__(self) -> "JobOfPods":
        await self.run.prepare()
        self._stack.push_async_callback(self.run.stop)
        self.store = await self._stack.enter_async_context(Store(self.endpoints))
        self.mirror = await self._stack.enter_async_context(Mirror(self.store, self.keys.prefix))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def phases(self) -> list[PhaseRecord]:
        """All phases so far, from etcd's history: who watches a mirror may miss one that is soon over."""
        last, found = await self.store.get(self.keys.phase), list[PhaseRecord]()
        if last is not None:
            async with self.store.watch(self.keys.phase, 0) as changes:
                while not found or found[-1] != last.read(PhaseRecord):
                    entry = (await anext(changes)).entry
                    assert entry is not None
                    found.append(entry.read(PhaseRecord))
        return found

    def drive(self) -> asyncio.Task[PhaseRecord]:
        """Start an orchestrator; it ends with the context."""
        job = replace(self.job, name=self.keys.name)
        metrics = RunMetrics(self.job.spec, self._directory / "state", CollectorRegistry())
        driving = asyncio.create_task(Driver(job, self.run, self.store, "orchestrator", metrics).drive())

        async def end() -> None:
            driving.cancel()
            await asyncio.wait([driving])

        self._stack.push_async_callback(end)
        return driving

    def pod(self, index: int, **script: Script) -> Pod:
        """Start a member; ``script`` by phase, in lower case."""
        self._started[index] += 1
        named = {PhaseName(name.capitalize()): part for name, part in script.items()}
        pod = Pod(self, index, f"{index}-{self._started[index]}", named)
        self._stack.push_async_callback(pod.close)
        return pod

    async def phase(self, name: PhaseName, iteration: int = 0) -> PhaseRecord:
        """The current phase, once it has this name in this iteration or a later one; it must last until it is seen."""

        def reached(entries: Any) -> PhaseRecord | None:
            seen = current(entries, self.keys)
            return seen.record if seen and seen.record.name is name and seen.record.iteration >= iteration else None

        return await self.mirror.until(reached, SOON)

    async def leases(self) -> int:
        """How many leases etcd holds."""
        request = urllib.request.Request(f"http://{self.endpoints[0]}/v3/lease/leases", data=b"{}", method="POST")

        def ask() -> int:
            with urllib.request.urlopen(request, timeout=SOON) as reply:
                return len(json.load(reply).get("leases", []))

        return await asyncio.to_thread(ask)
