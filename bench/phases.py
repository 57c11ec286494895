# SPDX-License-Identifier: Apache-2.0
"""What a barrier costs with many members on one etcd; run by ``make bench-phases``. Exit status 1: a goal is missed.

etcd is real; as in local mode it does not wait for the disk. The leader is the orchestrator's own code. The members
are simulated: each is the sidecar's own worker with its own connection, place and acks, but its part of a phase is a
script, and many share a process and a machine with etcd and the leader.

**Barrier time**, of each phase: from the moment when the last member is ready, that is, has done its part and is about
to ack, until the moment when the last member has seen the next phase. In between lie its ack, a transaction with two
fences, the leader's verdict, the fenced write of the next phase, and the news of it to all members. Two kinds, one
after the other, so that no phase of a kind leads to one of the other:

- *barrier*: a member is ready at a random moment, 2 to 4 ms times the number of members after it saw the phase: all
  have been told of it by then, as they have of a phase that lasts seconds;
- *at once*: a member is ready when it sees the phase. So the acks of all are waited for, and with them the processor
  time of every client, which in a job is spread over as many machines.

**Bare etcd**, the baseline of the same run: as many clients in as many processes put one plain key each as soon as they
see a key change; one watcher, with nothing to decide, changes that key again once it has counted them. That is the
least that a broadcast and N answers at once can cost on this machine with this client: no lease, no fence, no JSON.

Growth is judged from each number of members to the next, and over all of them: the power with which the medians grow.
"""

import argparse
import asyncio
import gc
import logging
import math
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any, cast

import structlog
from etcd_server import etcd_server
from phases_table import GOAL_MEMBERS, Cost, Result, table, verdicts
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from tandem_api.keys import JobKeys
from tandem_api.messages.phases import Member, PhaseName, PhaseRecord
from tandem_orchestrator.attendance import Attendance
from tandem_orchestrator.run import Run
from tandem_phases.leadership import lead
from tandem_phases.mirror import Mirror
from tandem_phases.phase import move
from tandem_phases.store import Store
from tandem_sidecar.metrics import MemberMetrics
from tandem_sidecar.steps import Part
from tandem_sidecar.switch import Switch
from tandem_sidecar.worker import Worker

MEMBERS = (8, 64, 256, 1024)
_TOGETHER = 512
_WARM = 6
_PATIENCE = 300.0
_TIMEOUT = 30.0
_LEASE_SECONDS = 60.0
_ACK_BYTES = 400
_SPREAD = 0.002
_AT_ONCE, _SPREAD_OUT = PhaseName.RELEASE, PhaseName.TRAIN
_LOAD = {
    "etcd_server_proposals_committed_total": "proposals",
    "etcd_network_client_grpc_received_bytes_total": "received",
    "etcd_network_client_grpc_sent_bytes_total": "sent",
    "process_cpu_seconds_total": "cpu",
}

console = Console(width=None if sys.stdout.isatty() else 150)


@dataclass(frozen=True, slots=True)
class Scale:
    """So many members through so many phases of each kind that count, after some that warm up."""

    members: int
    rounds: int

    @property
    def spread_out(self) -> range:
        """The epochs in which members are ready at random moments, and which lead to another one of that kind."""
        return range(_WARM + 1, _WARM + self.rounds + 1)

    @property
    def at_once(self) -> range:
        return range(self.spread_out.stop + 1, self.last)

    @property
    def last(self) -> int:
        return _WARM + 2 * self.rounds + 2

    def moment(self) -> float:
        """Seconds that a member takes for its part of a phase that lasts."""
        return random.uniform(1.0, 2.0) * _SPREAD * self.members


@dataclass(slots=True)
class Moments:
    """When the last member of a process saw each epoch, and when it was ready, on the machine's monotonic clock."""

    seen: dict[int, float] = field(default_factory=dict)
    ready: dict[int, float] = field(default_factory=dict)

    def merge(self, other: "Moments") -> "Moments":
        def latest(some: dict[int, float], more: dict[int, float]) -> dict[int, float]:
            return {epoch: max(moment, more[epoch]) for epoch, moment in some.items()}

        return Moments(latest(self.seen, other.seen), latest(self.ready, other.ready))

    def barriers(self, epochs: Iterable[int]) -> list[float]:
        """Ascending seconds from the last member's being ready in an epoch to the last one's seeing the next."""
        return sorted(self.seen[epoch + 1] - self.ready[epoch] for epoch in epochs)


Clients = Callable[[tuple[str, ...], JobKeys, range, Scale], Coroutine[Any, Any, Moments]]
Leader = Callable[[tuple[str, ...], JobKeys, Scale], Awaitable[Cost]]


class Scripted:
    """A member's part of every phase; it notes when it saw the phase and when it was ready."""

    def __init__(self, moments: Moments, scale: Scale) -> None:
        self._moments = moments
        self._scale = scale
        self.over = asyncio.Event()

    async def _part(self, record: PhaseRecord, part: Part) -> None:
        self._moments.seen[record.epoch] = time.monotonic()
        if record.name is _SPREAD_OUT:
            await asyncio.sleep(self._scale.moment())
        for name in ("pause", "flush", "release"):
            with part.step(name):
                part.measured[f"{name}Bytes"] = 1e9
        if record.name is PhaseName.SUCCEEDED:
            self.over.set()
        self._moments.ready[record.epoch] = time.monotonic()

    start = warmup = rollout = release = train = handoff = suspended = succeeded = _part


async def joined(endpoints: tuple[str, ...], keys: JobKeys, indices: range, scale: Scale) -> Moments:
    """Be these members until the job has succeeded."""
    moments = Moments()
    async with AsyncExitStack() as stack:
        scripts, tasks = [], []
        for index in indices:
            store = await stack.enter_async_context(Store(endpoints, timeout=_TIMEOUT))
            member = Member(
                index=index, pod=f"pod-{index}", uid=f"{index}", incarnation=f"{index}", address="127.0.0.1"
            )
            script, metrics = Scripted(moments, scale), MemberMetrics(CollectorRegistry())
            tasks.append(asyncio.create_task(Worker(store, keys, member, cast(Switch, script), metrics).run()))
            scripts.append(script)
        await asyncio.gather(*(script.over.wait() for script in scripts))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return moments


async def led(endpoints: tuple[str, ...], keys: JobKeys, scale: Scale) -> Cost:
    """Lead the job through its phases; returns what those that count cost etcd."""
    async with Store(endpoints, timeout=_TIMEOUT) as store, Mirror(store, keys.prefix) as mirror:
        leadership = await lead(store, mirror, keys, "bench", _LEASE_SECONDS)
        attendance = Attendance(mirror, keys, cast(Run, _NeverFull()), leadership)
        await attendance.gather(scale.members, _PATIENCE)
        seen, before = None, Cost()
        for epoch in range(1, scale.last):
            if epoch == scale.spread_out.start:
                before = load(endpoints)
            record = phase(epoch, _AT_ONCE if epoch in scale.at_once else _SPREAD_OUT, scale)
            attendance.begin(record)
            seen = await move(store, keys, leadership, seen, record)
            await store.delete_prefix(keys.acks(epoch - 2))
            ended = await attendance.attend(record)
            assert ended.failure is None, ended.failure
        after = load(endpoints)
        await move(store, keys, leadership, seen, phase(scale.last, PhaseName.SUCCEEDED, scale))
        await leadership.lease.revoke()
    return {kind: done - before[kind] for kind, done in after.items()}


def phase(epoch: int, name: PhaseName, scale: Scale) -> PhaseRecord:
    now, members = time.time(), tuple(range(scale.members))
    return PhaseRecord(
        epoch=epoch, iteration=0, name=name, weight_version=0, world=1, members=members, started=now,
        deadline=now + _PATIENCE,
    )  # fmt: skip


class _NeverFull:
    """What attendance asks of a run: for how long its buffer had no room."""

    buffer_full_seconds = 0.0


async def answering(endpoints: tuple[str, ...], keys: JobKeys, indices: range, scale: Scale) -> Moments:
    """Bare clients: each puts its key whenever ``phase`` changes."""
    moments = Moments()

    async def client(index: int) -> None:
        async with Store(endpoints, timeout=_TIMEOUT) as store, store.watch(keys.phase, 0) as changes:
            await store.put(keys.member(index), "")
            async for change in changes:
                assert change.entry is not None
                epoch = int(change.entry.value)
                moments.seen[epoch] = time.monotonic()
                if epoch == scale.last:
                    return
                if epoch not in scale.at_once:
                    await asyncio.sleep(scale.moment())
                moments.ready[epoch] = time.monotonic()
                await store.put(keys.ack(epoch, index), "x" * _ACK_BYTES)

    await asyncio.gather(*map(client, indices))
    return moments


async def asked(endpoints: tuple[str, ...], keys: JobKeys, scale: Scale) -> Cost:
    """Change ``phase`` as soon as all bare clients have answered."""
    async with Store(endpoints, timeout=_TIMEOUT) as store, store.watch(keys.prefix, 0) as changes:
        for epoch in range(1, scale.last + 1):
            answered = 0
            while answered < scale.members:
                answered += (await anext(changes)).key != keys.phase
            await store.put(keys.phase, str(epoch))
    return {}


def load(endpoints: tuple[str, ...]) -> Cost:
    """What etcd has done since it started; renewals of leases, which go by time and not by switches, apart."""
    with urllib.request.urlopen(f"http://{endpoints[0]}/metrics", timeout=_TIMEOUT) as reply:
        exposition = reply.read().decode()
    done: Cost = defaultdict(float)
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == "grpc_server_started_total":
                kind = "renewals" if sample.labels["grpc_method"] == "LeaseKeepAlive" else "requests"
                done[kind] += int(sample.value)
            elif sample.name in _LOAD:
                done[_LOAD[sample.name]] += sample.value
    return done


def in_process(clients: Clients, *arguments: Any) -> Moments:
    """Run some of the clients in this process, which is theirs alone.

    Python's garbage collector looks at all of them whenever one of them has made enough objects, while a sidecar has
    but its own to look at: it is off.
    """
    gc.disable()
    silence()
    return asyncio.run(clients(*arguments))


def silence() -> None:
    """A line of every member at every phase would be written by as many machines."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


async def play(clients: Clients, leader: Leader, endpoints: tuple[str, ...], scale: Scale) -> tuple[Moments, Cost]:
    """All clients in their processes and the leader in this one; returns the latest moments and etcd's load."""
    keys = JobKeys("bench", clients.__name__, str(scale.members))
    processes = max(min(len(os.sched_getaffinity(0)), scale.members // 4), math.ceil(scale.members / _TOGETHER))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        ask = partial(asyncio.get_running_loop().run_in_executor, pool, in_process, clients, endpoints, keys)
        running = [ask(range(first, scale.members, processes), scale) for first in range(processes)]
        cost = await leader(endpoints, keys, scale)
        return reduce(Moments.merge, await asyncio.gather(*running)), cost


async def measured(endpoints: tuple[str, ...], scale: Scale) -> Result:
    bare, _ = await play(answering, asked, endpoints, scale)
    real, cost = await play(joined, led, endpoints, scale)
    return Result(
        scale.members,
        spread=real.barriers(scale.spread_out),
        bare_spread=bare.barriers(scale.spread_out),
        at_once=real.barriers(scale.at_once),
        bare_at_once=bare.barriers(scale.at_once),
        load=cost,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=MEMBERS)
    parser.add_argument(
        "--rounds",
        type=int,
        default=100,
        help=f"phases of each kind for each number of members; above {GOAL_MEMBERS} members a fifth of them",
    )
    options = parser.parse_args()
    silence()
    before, results = os.getloadavg()[0], []
    for members in options.members:
        with tempfile.TemporaryDirectory() as directory, etcd_server(Path(directory)) as etcd:
            rounds = options.rounds if members <= GOAL_MEMBERS else options.rounds // 5
            results.append(asyncio.run(measured(etcd.endpoints, Scale(members, rounds))))
            console.log(f"{members:,} members: barrier p50 {1e3 * statistics.median(results[-1].spread):.1f} ms")
    console.print(table(results))
    console.print(f"members are simulated, at most {_TOGETHER} in a process")
    after, processors = os.getloadavg()[0], len(os.sched_getaffinity(0))
    console.print(f"load average {before:.1f} before and {after:.1f} after, on {processors} processors")
    goals = verdicts(results)
    for goal, met in goals.items():
        console.print(f"[green]✓[/green] {goal}" if met else f"[red]✗ {goal}[/red]")
    return 0 if all(goals.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
