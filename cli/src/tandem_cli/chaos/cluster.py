# SPDX-License-Identifier: Apache-2.0
"""Faults for a job on a cluster, with the rights of the user: pods/exec (get, create), pods (list, delete), rljobs
(get)."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from kubernetes.stream import ws_client

from tandem_api.errors import Problem
from tandem_api.labels import HYBRID, ORCHESTRATOR
from tandem_api.messages.phases import PhaseName, PhaseRecord
from tandem_cli.chaos.deed_channel import ArmedDeed, order_of
from tandem_cli.chaos.place import ArmedFault, AtOnce, JobEnded, NotDone, Seen, problems
from tandem_cli.chaos.plan import Component, Fault, Kind
from tandem_cli.chaos.program import program
from tandem_cli.cluster.errors import ClusterError
from tandem_cli.cluster.objects import Cluster, Job, Pod

_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 30.0
_STATE = "/var/lib/tandem"
_CONTAINERS = {
    Component.ENGINE: "engine",
    Component.SIDECAR: "engine",
    Component.TRAINER: "trainer",
    Component.ORCHESTRATOR: "orchestrator",
}
_FIRST_PROCESSES = (Component.SIDECAR, Component.ORCHESTRATOR, Component.POD)
"""They are, or have, process 1 of a container, which no signal from within reaches."""


class ExecChannel:
    """A command in a container, read by a thread of its own."""

    def __init__(self, call: ws_client.WSClient) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        self.complaint = ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    async def line(self) -> bytes:
        return await self._lines.get()

    def write(self, line: bytes) -> None:
        self._call.write_channel(ws_client.STDIN_CHANNEL, line)

    async def close(self) -> None:
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        if self._call.is_open():
            self._call.close_channel(ws_client.STDIN_CHANNEL)
        self._thread.join(_LOOK_SECONDS)
        self._call.close()

    def _read(self) -> None:
        rest = b""
        try:
            while self._call.is_open():
                self._call.update(timeout=_LOOK_SECONDS)
                *whole, rest = (rest + self._call.read_channel(ws_client.STDOUT_CHANNEL)).split(b"\n")
                for line in whole:
                    self._loop.call_soon_threadsafe(self._lines.put_nowait, line)
                self.complaint += self._call.read_channel(ws_client.STDERR_CHANNEL).decode(errors="replace")
        except (OSError, ws_client.WebSocketConnectionClosedException):
            # Whoever waits for a line hears of it by the empty one.
            pass
        finally:
            self._loop.call_soon_threadsafe(self._lines.put_nowait, b"")


class ClusterJob:
    """An RLJob. Its phases are watched from within one of its containers, and from another when that is gone."""

    def __init__(self, cluster: Cluster, job: Job) -> None:
        self._cluster = cluster
        self._job = job
        self._changed = asyncio.Event()
        self._watching: ExecChannel | None = None
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._ended = False
        self.seen: Seen | None = None

    async def follow(self, channel: ExecChannel) -> None:
        """Keep ``seen`` up to date; ``channel`` is the first watch."""
        while True:
            self._watching = channel
            while line := await channel.line():
                self._hear(json.loads(line))
            await channel.close()
            channel = await self._watch_again()

    async def watch(self) -> ExecChannel:
        """Watch from the first container that lets us.

        Raises:
            ClusterError: none does.
        """
        source = program("watching")
        error = ClusterError(f"no pod of {self._job.name} runs; kubectl tandem explain {self._job.name} says why")
        for pod, container in await asyncio.to_thread(self._watchers):
            try:
                channel = await self._exec(pod, container, "python", "-c", source)
                if await channel.line():
                    return channel
                error = ClusterError(f"container {container} of pod {pod} does not watch etcd: {channel.complaint}")
            except ClusterError as refused:
                error = refused
        raise error

    async def until[T](self, condition: Callable[[Seen], T | None], timeout: float | None = None) -> T:
        async with asyncio.timeout(timeout):
            while True:
                changed = self._changed
                if self.seen is not None and (value := condition(self.seen)) is not None:
                    return value
                if self._ended:
                    raise JobEnded(f"{self._job.name} has ended, or cannot be watched any more")
                await changed.wait()

    async def refusals(self, faults: Sequence[Fault]) -> list[Problem]:
        return problems(faults, self._refusals)

    @asynccontextmanager
    async def armed(self, fault: Fault) -> AsyncIterator[ArmedFault]:
        if fault.kind is Kind.LOSE_LEASE:
            yield AtOnce(lambda: self._lose_lease(fault))
            return
        pod = await asyncio.to_thread(self._pod, fault)
        if fault.kind is Kind.KILL and fault.component in (Component.POD, Component.ORCHESTRATOR):
            yield AtOnce(lambda: asyncio.to_thread(self._cluster.delete_pod, self._job.namespace, pod.name))
            return
        source = program("deeds", "targets", "interception")
        order = json.dumps(order_of(fault, directory=_STATE))
        try:
            channel = await self._exec(
                pod.name, _CONTAINERS[fault.component], "python", "-I", "-S", "-c", source, order
            )
        except ClusterError as error:
            raise NotDone(str(error)) from error
        deed = ArmedDeed(channel)
        try:
            await deed.armed()
            yield deed
        finally:
            await deed.end()

    def lose_sight(self, _: object) -> None:
        """Nobody follows the phases any more, so nothing will be heard of them."""
        self._ended = True
        self._wake()

    async def close(self) -> None:
        """Watch no more."""
        if self._watching is not None:
            await self._watching.close()

    def _hear(self, said: dict[str, Any]) -> None:
        if "record" not in said:
            self._answers.put_nowait(said)
            return
        self.seen = Seen(PhaseRecord.model_validate(said["record"]), said["leader"])
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _watch_again(self) -> ExecChannel:
        while True:
            try:
                return await self.watch()
            except ClusterError:
                self._ended = await asyncio.to_thread(self._has_ended)
                self._wake()
                await asyncio.sleep(_LOOK_SECONDS)

    def _has_ended(self) -> bool:
        try:
            return self._cluster.job(self._job.name, self._job.namespace).ended is not None
        except ClusterError:
            return False

    def _watchers(self) -> list[tuple[str, str]]:
        """Containers that etcd lets in, the orchestrator's first."""
        pods = self._cluster.pods(self._job)
        return [(pod.name, name) for pod in pods for name in (ORCHESTRATOR, "engine") if pod.runs(name)]

    def _pod(self, fault: Fault) -> Pod:
        component, index = (HYBRID, fault.index) if fault.component.in_pod else (ORCHESTRATOR, None)
        pods = [pod for pod in self._cluster.pods(self._job) if (pod.component, pod.index) == (component, index)]
        if not pods:
            raise NotDone(f"{self._job.name} has no such pod")
        # Of two pods of one index the older is ending.
        return pods[-1]

    async def _exec(self, pod: str, container: str, *command: str) -> ExecChannel:
        connection, namespace = self._cluster.connection, self._job.namespace
        return ExecChannel(await asyncio.to_thread(connection.attach, namespace, pod, container, command))

    async def _lose_lease(self, fault: Fault) -> None:
        if self._watching is None:
            raise NotDone("etcd cannot be reached from any pod of the job now")
        whose = "leader" if fault.component is Component.ORCHESTRATOR else str(fault.index)
        # An answer that came too late for the last question is none to this one.
        self._answers = asyncio.Queue()
        self._watching.write(f"{whose}\n".encode())
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                answer = await self._answers.get()
        except TimeoutError as error:
            raise NotDone(
                f"the pod that watches etcd for us did not say within {_ANSWER_SECONDS:.0f} s that it took the lease"
            ) from error
        if "refused" in answer:
            raise NotDone(answer["refused"])

    def _refusals(self, fault: Fault) -> Iterator[str]:
        replicas = int(self._job.spec.get("hybrid", {}).get("replicas", 1))
        if fault.component.in_pod and fault.index >= replicas:
            yield f"the job has {replicas} hybrid pods, and their indices begin at 0"
        if fault.component is Component.ETCD:
            yield "etcd serves all jobs of the cluster, and is no part of this one"
        if fault.kind is Kind.PARTITION:
            yield "a NetworkPolicy only ever allows, so none cuts off a pod that another one lets speak"
        if fault.kind in (Kind.STOP, Kind.SLOW_DOWN) and fault.component in _FIRST_PROCESSES:
            yield "it is process 1 of its container, which no signal from within stops"
        if fault.kind is Kind.KILL and fault.component is Component.SIDECAR:
            yield "it is process 1 of its container, which no signal from within kills; OutOfMemory or Kill pod do"
        if fault.phase is PhaseName.WARMUP and not self._job.spec.get("data", {}).get("warmup"):
            yield "in Warmup: the job has none"
        if fault.kind is Kind.CORRUPT_SEGMENT:
            yield from self._segment_refusals()

    def _segment_refusals(self) -> Iterator[str]:
        if self._job.spec.get("handoff", {}).get("verify") != "Checksums":
            yield "nothing would notice it: spec.handoff.verify is Names; run the job with Checksums"
        if self._job.spec.get("hybrid", {}).get("accelerators"):
            yield "its weights go from trainer to engine in the accelerators' memory, which nobody else can write to"


@asynccontextmanager
async def attached_to(cluster: Cluster, name: str) -> AsyncIterator[ClusterJob]:
    """A running RLJob.

    Raises:
        ClusterError: there is none of that name, it has ended, or none of its pods can be reached.
    """
    job = await asyncio.to_thread(cluster.job, name)
    if job.ended is not None:
        raise ClusterError(f"{name} has ended ({job.ended.reason}): there is nothing to break")
    found = ClusterJob(cluster, job)
    following = asyncio.create_task(found.follow(await found.watch()), name="follow the job's phases")
    following.add_done_callback(found.lose_sight)
    try:
        yield found
    finally:
        following.cancel()
        await asyncio.wait([following])
        await found.close()
