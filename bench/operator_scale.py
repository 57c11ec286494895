# SPDX-License-Identifier: Apache-2.0
"""How the operator bears many RLJobs applied at once; run by ``make bench-operator``. Exit status 1: a goal is missed.

The API server, its etcd and the controllers are real. There is no kubelet: as soon as a pod is made, its status is
written to say that it runs and is ready. Every measurement has an operator and a namespace of its own.

**bare**, the baseline of the same run: the objects of as many jobs, planned beforehand and applied by the operator's
own client with nothing to decide, observe or report: the least that this API server takes for them on this machine.
"""

import argparse
import asyncio
import math
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kopf
from etcd_server import EtcdServer, etcd_server
from operator_fixture import manifest
from operator_process import OperatorProcess
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Column, Table
from waiting import eventually, reached

from tandem_api.environment import Secrets
from tandem_api.schema import crd
from tandem_operator import cluster as api
from tandem_operator import jobs as rljobs
from tandem_operator.cluster import JOB, POD, RLJOB, SECRET, Cluster, Kind, Selection
from tandem_operator.informer import Informer
from tandem_operator.observations import PLAN_ANNOTATION
from tandem_operator.plan import Etcd, Images, Platform, plan
from tandem_operator.plan.identity import Manifest

MOST_SECONDS = 41
"""What JobSet's controller takes for 1,000 JobSets, which are 2,000 Jobs and 1,000 Services, on two processors."""
MOST_MEMORY = 200
"""MiB."""
MOST_SLOWDOWN = 1.2
MOST_GROWTH = 1.05
"""Requests per job with ten times as many jobs."""

_COLUMNS = ("jobs", "planned", "p50", "p99", "ready", "requests", "CPU", "MiB")
_PATIENCE = 900.0
_SENDERS = 16
_BROKEN = {"hybrid": {"template": {"spec": {"nope": 1}}}}
"""A field that no pod has: the API server refuses this job's objects whenever the operator tries."""

console = Console(width=None if sys.stdout.isatty() else 150)


@dataclass(slots=True)
class Run:
    """One measurement. ``waits``: seconds from each job's creation until all its objects existed, ascending."""

    jobs: int
    waits: list[float] = field(default_factory=list)
    planned: float = 0.0
    ready: float = 0.0
    requests: dict[tuple[str, str], float] = field(default_factory=dict)
    cpu: float = 0.0
    memory: int = 0

    @property
    def p99(self) -> float:
        return self.waits[math.ceil(0.99 * len(self.waits)) - 1]

    @property
    def requests_per_job(self) -> float:
        return sum(self.requests.values()) / self.jobs


class Simulation:
    """Pods without a kubelet, and a look at what the operator has made so far, in one namespace."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._pods: asyncio.Queue[str] = asyncio.Queue()
        self._begun: set[str] = set()
        self.created: dict[str, float] = {}
        self.planned: dict[str, float] = {}
        self.ready: set[str] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch and simulate until the block is left."""
        watched = {JOB: self._job_changed, POD: self._pod_changed, RLJOB: self._rljob_changed}
        async with asyncio.TaskGroup() as tasks:
            started = [
                tasks.create_task(Informer(self._cluster, Selection(kind, self._namespace), told, lambda _: None).run())
                for kind, told in watched.items()
            ]
            started += [tasks.create_task(self._simulate()) for _ in range(_SENDERS)]
            yield
            for task in started:
                task.cancel()

    def _job_changed(self, job: dict[str, Any]) -> None:
        name: str = job["metadata"]["name"]
        if name.endswith("-hybrid") and PLAN_ANNOTATION in job["metadata"].get("annotations", {}):
            self.planned.setdefault(name.removesuffix("-hybrid"), time.monotonic())

    def _pod_changed(self, pod: dict[str, Any]) -> None:
        name: str = pod["metadata"]["name"]
        if name not in self._begun:
            self._begun.add(name)
            self._pods.put_nowait(name)

    def _rljob_changed(self, job: dict[str, Any]) -> None:
        if job.get("status", {}).get("hybridReady") == "1/1":
            self.ready.add(job["metadata"]["name"])

    async def _simulate(self) -> None:
        kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        status = {"phase": "Running", "conditions": [{"type": kind, "status": "True"} for kind in kinds]}
        while True:
            await self._cluster.patch(POD, self._namespace, await self._pods.get(), {"status": status}, "status")

    async def apply(self, names: Sequence[str], **spec: Any) -> None:
        """Create RLJobs, sixteen at a time."""
        slots = asyncio.Semaphore(_SENDERS)

        async def create(name: str) -> None:
            body = manifest(name, **spec)
            body["metadata"] = {"name": name, "namespace": self._namespace}
            async with slots:
                self.created[name] = time.monotonic()
                await self._cluster.create(body)

        await asyncio.gather(*map(create, names))


def requests(exposition: str) -> dict[tuple[str, str], float]:
    """How often the operator asked the API server, by verb and kind."""
    counted: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == "tandem_operator_api_requests_total" and sample.labels["kind"] != "Lease":
                place = sample.labels["verb"], sample.labels["kind"]
                counted[place] = counted.get(place, 0) + sample.value
    return counted


async def measured(cluster: Cluster, etcd: EtcdServer, directory: Path, jobs: int, broken: bool = False) -> Run:
    """Apply ``jobs`` RLJobs at once, and before them one that always fails if ``broken``."""
    namespace, run = await fresh_namespace(cluster), Run(jobs)
    operator = OperatorProcess(directory, namespace, etcd.endpoints, namespace)
    operator.start()
    await eventually(operator.ready)
    names = [f"job-{number}" for number in range(jobs)]
    simulation = Simulation(cluster, namespace)
    try:
        async with simulation.running():
            if broken:
                await simulation.apply(["broken"], **_BROKEN)
            before, used = requests(operator.metrics()), operator.cpu_seconds()
            began = time.monotonic()
            await simulation.apply(names)
            await reached(lambda: simulation.planned.keys() >= set(names), _PATIENCE, "all jobs planned")
            run.planned = max(simulation.planned.values()) - began
            console.log(f"{jobs:,} jobs planned in {run.planned:.1f} s; their pods start")
            await reached(lambda: simulation.ready >= set(names), _PATIENCE, "all jobs ready")
            run.ready = time.monotonic() - began
            after = requests(operator.metrics())
        run.waits = sorted(simulation.planned[name] - simulation.created[name] for name in names)
        run.requests = {place: count - before.get(place, 0) for place, count in after.items()}
        run.cpu, run.memory = operator.cpu_seconds() - used, operator.peak_memory()
    finally:
        await operator.stop()
    return run


async def bare(cluster: Cluster, etcd: EtcdServer, jobs: int) -> float:
    """Seconds in which the objects of ``jobs`` RLJobs without an operator are applied; their pods start meanwhile."""
    namespace = await fresh_namespace(cluster)
    platform = Platform(Images("a:1", "b:1", "c:1"), Etcd(etcd.endpoints), await cluster.discover())
    simulation = Simulation(cluster, namespace)
    slots = asyncio.Semaphore(_SENDERS)

    async def apply(objects: Sequence[Manifest]) -> None:
        async with slots:
            await asyncio.gather(*(send(found) for found in objects if Kind.of(found) != JOB))
            for workload in (found for found in objects if Kind.of(found) == JOB):
                await send(workload)

    async def send(manifest: Manifest) -> None:
        await (cluster.create(manifest) if Kind.of(manifest) == SECRET else cluster.apply(manifest))

    async with simulation.running():
        await simulation.apply([f"job-{number}" for number in range(jobs)])
        raw, _ = await cluster.list(Selection(RLJOB, namespace))
        planned = [plan(rljobs.read(one), platform, Secrets("token")) for one in raw]
        began = time.monotonic()
        await asyncio.gather(*map(apply, planned))
        return time.monotonic() - began


async def fresh_namespace(cluster: Cluster) -> str:
    name = f"bench-{uuid.uuid4().hex[:8]}"
    await cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


def table(runs: dict[str, Run]) -> Table:
    """The runs, one a row. ``ready`` waits for the controllers that make the pods."""
    units = "times in seconds; p50 and p99 of a job's wait; API requests per job; the operator's CPU time and memory"
    shown = Table("run", *(Column(title, justify="right") for title in _COLUMNS), caption=units)
    for title, run in runs.items():
        seconds = (run.planned, statistics.median(run.waits), run.p99, run.ready)
        memory = run.memory / 2**20
        figures = [*(f"{value:.1f}" for value in (*seconds, run.requests_per_job, run.cpu)), f"{memory:.0f}"]
        shown.add_row(title, f"{run.jobs:,}", *figures)
    return shown


def verdicts(runs: dict[str, Run]) -> dict[str, bool]:
    """Each goal with its figures, and whether it is met."""
    few, many = runs["alone 1"], runs["many"]
    alone, beside = (
        statistics.median(run.p99 for title, run in runs.items() if title.startswith(kind))
        for kind in ("alone", "beside")
    )
    growth, slowdown, memory = many.requests_per_job / few.requests_per_job, beside / alone, many.memory / 2**20
    return {
        f"{many.jobs:,} jobs planned in {many.planned:.1f} s, at most {MOST_SECONDS}": many.planned <= MOST_SECONDS,
        f"{memory:.0f} MiB of memory, at most {MOST_MEMORY}": memory <= MOST_MEMORY,
        f"requests per job grow {growth:.2f} fold from {few.jobs} to {many.jobs:,} jobs, at most {MOST_GROWTH}": (
            growth <= MOST_GROWTH
        ),
        f"p99 beside a failing job is {slowdown:.2f} of that alone, at most {MOST_SLOWDOWN}": slowdown <= MOST_SLOWDOWN,
    }


async def measure(jobs: int, rounds: int) -> tuple[dict[str, Run], float]:
    """The runs by title: few jobs alone and beside one that always fails, in turns, then many. And the bare seconds."""
    api.PLURALS |= {"CustomResourceDefinition": "customresourcedefinitions", "Namespace": "namespaces"}
    few, runs = max(jobs // 10, 1), dict[str, Run]()
    with tempfile.TemporaryDirectory() as temporary, etcd_server(Path(temporary)) as etcd:
        async with Cluster(login) as cluster:
            await cluster.apply({**crd(), "metadata": {"name": crd()["metadata"]["name"]}})
            for turn in range(rounds):
                for title, broken in (("alone", False), ("beside", True)):
                    runs[f"{title} {turn + 1}"] = await measured(cluster, etcd, Path(temporary), few, broken)
            runs["many"] = await measured(cluster, etcd, Path(temporary), jobs)
            return runs, await bare(cluster, etcd, jobs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="of few jobs alone and beside one that always fails")
    options = parser.parse_args()
    runs, least = asyncio.run(measure(options.jobs, options.rounds))
    console.print(table(runs))
    times = runs["many"].planned / least
    console.print(
        f"bare: the objects of {options.jobs:,} jobs in {least:.1f} s; the operator took {times:.2f} times that"
    )
    made = (f"{verb} {kind} {count:.0f}" for (verb, kind), count in sorted(runs["many"].requests.items()) if count)
    console.print(f"requests of the run with many jobs: {', '.join(made)}")
    console.print(f"load average of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    goals = verdicts(runs)
    for goal, met in goals.items():
        console.print(f"[green]✓[/green] {goal}" if met else f"[red]✗ {goal}[/red]")
    return 0 if all(goals.values()) else 1


def login() -> kopf.ConnectionInfo:
    """The cluster that KUBECONFIG names."""
    found = kopf.login_with_kubeconfig(settings=kopf.OperatorSettings())
    assert found is not None, "KUBECONFIG names no cluster"
    return found


if __name__ == "__main__":
    sys.exit(main())
