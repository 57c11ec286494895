# SPDX-License-Identifier: Apache-2.0
"""How the operator bears many RLJobs applied at once; run by ``make bench-operator``. Exit status 1: a goal is missed.

The API server, its etcd and the controllers are real. There is no kubelet: as soon as a pod is made, its status is
written to say that it runs and is ready. Every measurement has a control plane of its own, so that none bears the
objects that another one left.

**JobSet**, the baseline of the same run: as many JobSets, each of two Jobs and a headless Service, applied and observed
in the same way with JobSet's own controller. An RLJob has two Jobs too, and more objects around them.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jobset
import kopf
import operator_fixture
from etcd_server import etcd_server
from kubectl import ROOT
from operator_process import OperatorProcess, cpu_seconds, peak_memory
from percentile import p99
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Column, Table
from waiting import eventually, reached

from tandem_api.environment import Secrets
from tandem_api.schema import crd
from tandem_operator import cluster as api
from tandem_operator.cluster import JOB, POD, RLJOB, Cluster, Kind, Selection
from tandem_operator.informer import Informer
from tandem_operator.observations import PLAN_ANNOTATION
from tandem_operator.plan import plan
from tandem_operator.plan.identity import Manifest

MOST_TIMES_JOBSET = 1.0
"""Seconds until all is made, beside JobSet's for as many JobSets."""
JOBSET_ELSEWHERE = 41
"""Seconds that JobSet once took for 1,000 JobSets on two processors: how fast this machine is."""
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

console = Console(stderr=True, width=None if sys.stderr.isatty() else 150)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is applied many times: how one is made, and how one sees that its controller has done its part."""

    kind: Kind
    manifest: Callable[..., Manifest]
    awaited: Callable[[Manifest], bool]
    """Whether this object of the kinds ``watched`` is one of the ``parts`` that show that all of them exist."""
    watched: tuple[Kind, ...]
    parts: int
    ready: Callable[[Manifest], bool]


def _is_last(job: Manifest) -> bool:
    """The operator makes an RLJob's hybrid Job after all other objects."""
    metadata = job["metadata"]
    return str(metadata["name"]).endswith("-hybrid") and PLAN_ANNOTATION in metadata.get("annotations", {})


def _all_ready(found: Manifest) -> bool:
    return sum(part["ready"] for part in found["status"].get("replicatedJobsStatus", ())) == len(jobset.PARTS)


RLJOBS = Subject(
    RLJOB, operator_fixture.manifest, _is_last, (JOB,), 1, lambda found: found["status"].get("hybridReady") == "1/1"
)
JOBSETS = Subject(
    Kind(f"jobset.x-k8s.io/{jobset.API}", "JobSet"),
    jobset.manifest,
    lambda _: True,
    (JOB, Kind("v1", "Service")),
    len(jobset.PARTS) + 1,
    _all_ready,
)


@dataclass(slots=True)
class Run:
    """One measurement. ``waits``: seconds from each job's creation until all its objects existed, ascending.

    ``used``: CPU seconds of each program of the machine until then; ``cpu``: the controller's until the end.
    """

    jobs: int
    waits: list[float] = field(default_factory=list)
    planned: float = 0.0
    ready: float = 0.0
    requests: dict[str, float] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)
    cpu: float = 0.0
    memory: int = 0

    @property
    def p99(self) -> float:
        return p99(self.waits)

    @property
    def requests_per_job(self) -> float:
        return sum(self.requests.values()) / self.jobs


class Simulation:
    """Pods without a kubelet, and a look at what the controller has made so far, in one namespace."""

    def __init__(self, cluster: Cluster, namespace: str, subject: Subject) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._subject = subject
        self._pods: asyncio.Queue[str] = asyncio.Queue()
        self._begun: set[str] = set()
        self._parts: dict[str, set[str]] = {}
        self.created: dict[str, float] = {}
        self.planned: dict[str, float] = {}
        self.ready: set[str] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch and simulate until the block is left."""
        watched: dict[Kind, Callable[[Manifest], None]] = dict.fromkeys(self._subject.watched, self._part_changed)
        watched |= {POD: self._pod_changed, self._subject.kind: self._subject_changed}
        async with asyncio.TaskGroup() as tasks:
            started = [
                tasks.create_task(Informer(self._cluster, Selection(kind, self._namespace), told, lambda _: None).run())
                for kind, told in watched.items()
            ]
            started += [tasks.create_task(self._simulate()) for _ in range(_SENDERS)]
            yield
            for task in started:
                task.cancel()

    def _part_changed(self, found: Manifest) -> None:
        owner = next((owner["name"] for owner in found["metadata"].get("ownerReferences", ())), None)
        if owner is None or not self._subject.awaited(found):
            return
        parts = self._parts.setdefault(owner, set())
        parts.add(found["metadata"]["uid"])
        if len(parts) == self._subject.parts:
            self.planned.setdefault(owner, time.monotonic())

    def _pod_changed(self, pod: Manifest) -> None:
        name: str = pod["metadata"]["name"]
        if name not in self._begun:
            self._begun.add(name)
            self._pods.put_nowait(name)

    def _subject_changed(self, found: Manifest) -> None:
        if "status" in found and self._subject.ready(found):
            self.ready.add(found["metadata"]["name"])

    async def _simulate(self) -> None:
        kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        status = {"phase": "Running", "conditions": [{"type": kind, "status": "True"} for kind in kinds]}
        while True:
            await self._cluster.patch(POD, self._namespace, await self._pods.get(), {"status": status}, "status")

    async def apply(self, names: Sequence[str], **spec: Any) -> None:
        """Create as many of the subject, sixteen at a time."""
        slots = asyncio.Semaphore(_SENDERS)

        async def create(name: str) -> None:
            body = self._subject.manifest(name, self._namespace, **spec)
            body["metadata"] = {"name": name, "namespace": self._namespace}
            async with slots:
                self.created[name] = time.monotonic()
                await self._cluster.create(body)

        await asyncio.gather(*map(create, names))

    async def warm_up(self) -> None:
        """One that is not measured: what a controller makes first waits for its connections and caches."""
        await self.apply(["first"])
        await reached(lambda: "first" in self.ready, _PATIENCE, "the first job ready")

    async def measure(self, run: Run, controller: int, until_ready: bool) -> None:
        """Apply ``run.jobs`` at once and fill in ``run``; ``controller`` is the process that makes their objects."""
        names = [f"job-{number}" for number in range(run.jobs)]
        before, own = used(controller), cpu_seconds(controller)
        began = time.monotonic()
        await self.apply(names)
        await reached(lambda: self.planned.keys() >= set(names), _PATIENCE, "all jobs planned")
        run.used = {program: seconds - before.get(program, 0) for program, seconds in used(controller).items()}
        run.planned = max(self.planned.values()) - began
        console.log(f"{run.jobs:,} planned in {run.planned:.1f} s")
        if until_ready:
            await reached(lambda: self.ready >= set(names), _PATIENCE, "all jobs ready")
            run.ready = time.monotonic() - began
        run.waits = sorted(self.planned[name] - self.created[name] for name in names)
        run.cpu, run.memory = cpu_seconds(controller) - own, peak_memory(controller)


def used(controller: int) -> dict[str, float]:
    """CPU seconds of every program that runs beside this one, by name: only those of the same process namespace."""
    seconds: dict[str, float] = {}
    for process in (int(path.name) for path in Path("/proc").glob("[0-9]*")):
        try:
            name = Path(f"/proc/{process}/comm").read_text().strip()
            title = {controller: "controller", os.getpid(): "benchmark"}.get(process, name)
            seconds[title] = seconds.get(title, 0.0) + cpu_seconds(process)
        except OSError:
            continue  # It has ended.
    return seconds


def requests(exposition: str) -> dict[str, float]:
    """How often the operator asked the API server, by verb and kind."""
    counted: dict[str, float] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == "tandem_operator_api_requests_total" and sample.labels["kind"] != "Lease":
                place = f"{sample.labels['verb']} {sample.labels['kind']}"
                counted[place] = counted.get(place, 0) + sample.value
    return counted


async def of_tandem(cluster: Cluster, directory: Path, run: Run, broken: bool) -> None:
    """Fill in ``run`` with RLJobs, and before them one that always fails if ``broken``."""
    await cluster.apply({**crd(), "metadata": {"name": crd()["metadata"]["name"]}})
    namespace = await fresh_namespace(cluster)
    with etcd_server(directory) as etcd:
        operator = OperatorProcess(directory, namespace, etcd.endpoints, namespace)
        operator.start()
        try:
            await eventually(operator.ready)
            simulation = Simulation(cluster, namespace, RLJOBS)
            async with simulation.running():
                await simulation.warm_up()
                if broken:
                    await simulation.apply(["broken"], **_BROKEN)
                before = requests(operator.metrics())
                await simulation.measure(run, operator.pid, until_ready=True)
                after = requests(operator.metrics())
            run.requests = {place: count - before.get(place, 0) for place, count in after.items()}
        finally:
            await operator.stop()


async def of_jobset(cluster: Cluster, directory: Path, run: Run) -> None:
    """Fill in ``run`` with JobSets. Their pods' start, minutes of other controllers, is not waited for: meanwhile the
    machine would change between the two that are compared."""
    with jobset.jobset(directory) as controller:
        simulation = Simulation(cluster, await fresh_namespace(cluster), JOBSETS)
        async with simulation.running():
            await simulation.warm_up()
            await simulation.measure(run, controller, until_ready=False)


async def fresh_namespace(cluster: Cluster) -> str:
    name = f"bench-{uuid.uuid4().hex[:8]}"
    await cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


def table(runs: dict[str, Run]) -> Table:
    """The runs, one a row. ``ready`` waits for the controllers that make the pods."""
    units = "times in seconds; p50 and p99 of a job's wait; API requests per job; the controller's CPU time and memory"
    shown = Table("run", *(Column(title, justify="right") for title in _COLUMNS), caption=units)
    for title, run in runs.items():
        seconds = (run.planned, statistics.median(run.waits), run.p99)
        memory = run.memory / 2**20
        only_of_ours = (f"{value:.1f}" if value else "-" for value in (run.ready, run.requests_per_job))
        figures = [*(f"{value:.1f}" for value in seconds), *only_of_ours, f"{run.cpu:.1f}", f"{memory:.0f}"]
        shown.add_row(title, f"{run.jobs:,}", *figures)
    return shown


def verdicts(runs: dict[str, Run]) -> dict[str, bool]:
    """Each goal with its figures, and whether it is met."""
    few, many, theirs = runs["alone 1"], runs["many"], runs["JobSet"]
    alone, beside = (
        statistics.median(run.p99 for title, run in runs.items() if title.startswith(kind))
        for kind in ("alone", "beside")
    )
    growth, slowdown, memory = many.requests_per_job / few.requests_per_job, beside / alone, many.memory / 2**20
    return {
        f"{many.jobs:,} RLJobs planned in {many.planned:.1f} s, at most what JobSet takes: {theirs.planned:.1f} s for "
        f"{theirs.jobs:,} JobSets": many.planned <= MOST_TIMES_JOBSET * theirs.planned,
        f"{memory:.0f} MiB of memory, at most {MOST_MEMORY}": memory <= MOST_MEMORY,
        f"requests per job grow {growth:.2f} fold from {few.jobs} to {many.jobs:,} jobs, at most {MOST_GROWTH}": (
            growth <= MOST_GROWTH
        ),
        f"p99 beside a failing job is {slowdown:.2f} of that alone, at most {MOST_SLOWDOWN}": slowdown <= MOST_SLOWDOWN,
    }


async def measured(title: str, jobs: int) -> Run:
    """One measurement, on the control plane that KUBECONFIG names."""
    api.PLURALS |= {"CustomResourceDefinition": "customresourcedefinitions", "Namespace": "namespaces"}
    api.PLURALS |= {"JobSet": "jobsets"}
    run = Run(jobs)
    with tempfile.TemporaryDirectory() as directory:
        async with Cluster(login) as cluster:
            if title == "JobSet":
                await of_jobset(cluster, Path(directory), run)
            else:
                await of_tandem(cluster, Path(directory), run, broken=title.startswith("beside"))
    return run


def apart(title: str, jobs: int) -> Run:
    """The same, on a control plane of its own in another process."""
    console.log(f"{title}: {jobs:,} at once")
    command = [str(ROOT / "hack" / "with-control-plane"), sys.executable, __file__]
    done = subprocess.run(
        [*command, "--jobs", str(jobs), "--only", title], stdout=subprocess.PIPE, check=True, text=True
    )
    return Run(**json.loads(done.stdout.splitlines()[-1]))  # Warnings of a watch that is begun anew come before it.


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="of few jobs alone and beside one that always fails")
    parser.add_argument("--only", metavar="TITLE", help="measure this alone on KUBECONFIG's cluster, and print JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(asdict(asyncio.run(measured(options.only, options.jobs)))))
        return 0
    jobset.program()  # A control plane of its own has no network to fetch it from.
    titles = [f"{kind} {turn + 1}" for turn in range(options.rounds) for kind in ("alone", "beside")]
    few = max(options.jobs // 10, 1)
    runs = {title: apart(title, few) for title in titles}
    runs |= {title: apart(title, options.jobs) for title in ("JobSet", "many")}
    goals = verdicts(runs)
    report(runs, goals)
    return 0 if all(goals.values()) else 1


def report(runs: dict[str, Run], goals: dict[str, bool]) -> None:
    """All figures, then the goals."""
    console.print(table(runs))
    ours = len(plan(operator_fixture.rljob(), operator_fixture.platform(), Secrets("token")))
    for title, objects in (("JobSet", JOBSETS.parts), ("many", ours)):
        run = runs[title]
        spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in sorted(run.used.items()) if seconds >= 0.5)
        rate, total = objects * run.jobs / run.planned, sum(run.used.values())
        console.print(f"{title}: {objects} objects a job, {rate:.0f} a second")
        console.print(
            f"  CPU seconds until planned: {total:.1f} ({1000 * total / objects / run.jobs:.1f} ms an object): {spent}"
        )
    made = (f"{place} {count:.0f}" for place, count in sorted(runs["many"].requests.items()) if count)
    console.print(f"requests of the run with many jobs: {', '.join(made)}")
    console.print(f"JobSet elsewhere: {JOBSET_ELSEWHERE} s for 1,000 JobSets on two processors")
    console.print(f"load average of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    for goal, met in goals.items():
        console.print(f"[green]✓[/green] {goal}" if met else f"[red]✗ {goal}[/red]")


def login() -> kopf.ConnectionInfo:
    """The cluster that KUBECONFIG names."""
    found = kopf.login_with_kubeconfig(settings=kopf.OperatorSettings())
    assert found is not None, "KUBECONFIG names no cluster"
    return found


if __name__ == "__main__":
    sys.exit(main())
