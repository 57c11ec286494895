# SPDX-License-Identifier: Apache-2.0
"""An RLJob of the real stack on a cluster that meets faults, and what is left of it: the same books as of a run on this
machine (``broken_run``)."""

import asyncio
import io
import json
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from broken_run import Books, BrokenRun
from kubectl import ENVIRONMENT, ETCD, KUBECONFIG, RELEASE, SYSTEM, kubectl, objects, one
from runs import TANDEM
from waiting import DEADLINE, until

from tandem_api.labels import ORCHESTRATOR
from tandem_api.messages.phases import PhaseName
from tandem_api.status import Condition, JobPhase
from tandem_cli.chaos.cluster import ClusterJob, attached_to
from tandem_cli.chaos.injector import Injector
from tandem_cli.chaos.place import ArmedFault, AtOnce, Seen
from tandem_cli.chaos.plan import Fault, Kind, dumped
from tandem_cli.chaos.recovery import Recovery
from tandem_cli.cluster.connection import Connection, Options
from tandem_cli.cluster.errors import ClusterError
from tandem_cli.cluster.objects import Cluster
from tandem_cli.cluster.reading import reader

PATIENCE = 400.0
LOOK_SECONDS = 2.0
FILES = ("buffer.sqlite", "buffer.sqlite-wal", "timeline.jsonl")
OPERATOR = "app.kubernetes.io/name=tandem,app.kubernetes.io/component=operator"

_WHOLE_BUFFER = """
import os, sqlite3, sys
with sqlite3.connect("file:" + os.environ["TANDEM_STATE_DIR"] + "/buffer.sqlite?mode=rw", uri=True) as db:
    sys.stdout.buffer.write(db.serialize())
"""
_ARCHIVE = """
import os, sys, tarfile
os.chdir(os.environ["TANDEM_STATE_DIR"])
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|gz") as archive:
    for name in filter(os.path.exists, sys.argv[1:]):
        archive.add(name)
"""


class BrokenJob:
    """A running RLJob, its faults, and a copy of its replay buffer taken again and again."""

    def __init__(self, name: str, namespace: str, run: BrokenRun) -> None:
        self.name = name
        self.namespace = namespace
        self.run = run
        self._cluster = Cluster(Connection(Options(Path(KUBECONFIG), namespace=namespace)))
        self._job = self._cluster.job(name)
        self._seen = Books()
        self._looking = threading.Lock()
        run.out.mkdir()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep looking at its buffer."""
        ended = threading.Event()

        def looking() -> None:
            while not ended.wait(LOOK_SECONDS):
                self.look()

        thread = threading.Thread(target=looking)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def look(self) -> bool:
        """Compare its buffer with what it held before; whether there was an orchestrator to ask for it."""
        with self._looking:
            pods = [pod.name for pod in self._cluster.pods(self._job) if pod.runs(ORCHESTRATOR)]
            try:
                content = self._executed(pods[-1], _WHOLE_BUFFER)
            except (ClusterError, OSError, IndexError):
                return False
            (self.run.out / "buffer.sqlite").write_bytes(content)
            self._compare()
            return True

    def begun(self, seconds: float) -> None:
        """Wait for its first iteration."""
        phases = (JobPhase.ROLLOUT, JobPhase.RELEASE, JobPhase.TRAIN, JobPhase.HANDOFF)
        until(lambda: self._cluster.job(self.name).status.phase in phases, seconds, "the begin of the job")

    def ended(self, seconds: float) -> Condition:
        """How it ended, within so many seconds."""
        return until(lambda: self._cluster.job(self.name).ended, seconds, "the end of the job")

    def collect(self) -> None:
        """Copy what it has left, once it has ended."""
        with self._looking, reader(self._cluster, self._job) as pod:
            archive = self._executed(pod, _ARCHIVE, *FILES)
            with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as files:
                files.extractall(self.run.out, filter="data")
            self._compare()

    def inflict(self, faults: Sequence[Fault], directory: Path) -> Iterator[tuple[Fault, Recovery | None]]:
        """Have the command line do them. Of each: None once it is done, and then what came of it."""
        plan = directory / "plan.yaml"
        plan.write_text(dumped(faults))
        command = (
            *(TANDEM, "chaos", "run", plan, self.name, "-n", self.namespace),
            "--patience",
            str(PATIENCE),
            "--json",
        )
        with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            left = list(faults)
            for line in process.stdout:
                print(time.strftime("%H:%M:%S"), line, end="", file=sys.stderr)
                said = json.loads(line)
                if said["event"] == "struck":
                    yield left[0], None
                elif said["event"] in ("recovered", "lost", "refused"):
                    fault = left.pop(0)
                    until(self.look, DEADLINE, "a look at the replay buffer")
                    yield fault, _recovery(fault, said)

    def kill_etcd(self, fault: Fault) -> Recovery:
        """What came of the deletion of etcd's pods."""
        return self.done_to_it(fault, lambda: _kill_pods("-l", ETCD))

    def kill_etcd_leader(self, fault: Fault) -> Recovery:
        """What came of the deletion of one of etcd's pods, of that which leads."""
        return self.done_to_it(fault, lambda: _kill_pods(_etcd_leader()))

    def done_to_it(self, fault: Fault, deed: Callable[[], object]) -> Recovery:
        """What came of a deed for which an administrator's rights are needed; to the job it is ``fault``."""

        async def inflicted() -> Recovery:
            async with attached_to(self._cluster, self.name) as job:
                return await Injector(_AnAdministrators(deed, job), PATIENCE).inflict(fault)

        recovery = asyncio.run(inflicted())
        until(self.look, DEADLINE, "a look at the replay buffer")
        return recovery

    def _executed(self, pod: str, source: str, *arguments: str) -> bytes:
        command = ("python", "-I", "-S", "-c", source, *arguments)
        return self._cluster.connection.execute(self.namespace, pod, ORCHESTRATOR, command)

    def _compare(self) -> None:
        now = Books.of(self.run.out)
        self.run.lost.extend(self._seen.lost(now))
        self._seen.segments |= now.segments
        self._seen.batches |= now.batches


class _AnAdministrators:
    """A job to which one thing is done, from outside of it."""

    def __init__(self, deed: Callable[[], object], job: ClusterJob) -> None:
        self._deed = deed
        self._job = job
        self.until = job.until
        self.refusals = job.refusals

    @property
    def seen(self) -> Seen | None:
        return self._job.seen

    @asynccontextmanager
    async def armed(self, fault: Fault) -> AsyncIterator[ArmedFault]:
        yield AtOnce(lambda: asyncio.to_thread(self._deed))


def kill_operators(phase: PhaseName) -> dict[str, Any]:
    """Kill all replicas; once one of the new ones leads, how long that took. ``phase``: the job's."""
    lease = f"{RELEASE}-operator"
    before, at = one("lease", lease, SYSTEM)["spec"]["holderIdentity"], time.time()
    _kill_pods("-l", OPERATOR)

    def led() -> bool:
        return one("lease", lease, SYSTEM)["spec"].get("holderIdentity") not in (None, "", before)

    until(led, DEADLINE, "another operator that leads")
    fault = {"kind": Kind.KILL, "target": {"component": "operator"}, "phase": phase}
    return {"fault": fault, "hit": phase, "at": at, "seconds": time.time() - at, "new_world": False}


def _etcd_leader() -> str:
    """Name of its pod."""

    def leads(pod: str) -> bool:
        metrics = kubectl("get", "--raw", f"/api/v1/namespaces/{SYSTEM}/pods/{pod}:2381/proxy/metrics")
        return "etcd_server_is_leader 1" in metrics.splitlines()

    names = [pod["metadata"]["name"] for pod in objects("pods", SYSTEM, "-l", ETCD)]
    return until(lambda: next(filter(leads, names), None), DEADLINE, "a leader of etcd")


def _kill_pods(*which: str) -> None:
    kubectl("delete", "pods", "-n", SYSTEM, *which, "--grace-period=1", "--wait=false")


def _recovery(fault: Fault, said: dict[str, Any]) -> Recovery:
    """What the command line said of it. What was not done is no recovery either, and ``reason`` says why."""
    if said["event"] == "refused":
        return Recovery(fault, fault.phase, 0.0, None, False, said["why"])
    return Recovery(fault, PhaseName(said["hit"]), said["at"], said["seconds"], said["new_world"], said["reason"])
