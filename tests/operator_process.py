# SPDX-License-Identifier: Apache-2.0
"""The operator as a process of this machine, with an etcd of its own, against a real API server."""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from kubectl import KUBECONFIG
from kubernetes import client, config
from operator_fixture import manifest
from ports import free_port
from waiting import DEADLINE, eventually

from tandem_api.keys import JobKeys
from tandem_api.messages.phases import PhaseName, PhaseRecord
from tandem_operator.cluster import EVENT, POD, RLJOB, Cluster, Kind, Selection
from tandem_operator.observations import PLAN_ANNOTATION
from tandem_phases.store import Store

KILLED_WITHIN = 5.0
SEED = int(os.environ.get("TANDEM_E2E_SEED") or random.SystemRandom().randrange(2**32))
"""Of all random moments; printed by each test that draws one, and set by the environment to draw the same again."""


class OperatorProcess:
    """One replica. Configured for one namespace, in which its Lease lies too."""

    def __init__(self, directory: Path, namespace: str, endpoints: tuple[str, ...], identity: str, **settings: Any):
        self._port = 0
        self._identity = identity
        self._log = directory / f"{identity}.log"
        self._config = directory / f"{identity}.json"
        self.settings = {
            "images": dict.fromkeys(("orchestrator", "engine", "trainer"), "tandem.invalid/none:1"),
            "etcd": {"endpoints": endpoints},
            "namespaces": [namespace],
            "leaderElection": {"namespace": namespace, "duration": 15, "renewDeadline": 10, "retryPeriod": 1},
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._killing: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Host and port of its HTTP server."""
        return f"127.0.0.1:{self._port}"

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> None:
        # A port of its own each time: while it was down, another process may have taken the last one.
        self._port = free_port()
        self._config.write_text(json.dumps(self.settings | {"port": self._port}))
        environment = os.environ | {
            "KUBECONFIG": KUBECONFIG,
            "TANDEM_OPERATOR_CONFIG": str(self._config),
            "TANDEM_OPERATOR_IDENTITY": self._identity,
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tandem_operator"], env=environment, stdout=log, stderr=log
            )

    async def ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log

        def ask() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=2) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        return await asyncio.to_thread(ask)

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=30) as answer:
            return str(answer.read().decode())

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def ended(self, seconds: float) -> int:
        """Wait until it ends by itself; returns the exit code."""
        assert self._process is not None
        code = await asyncio.to_thread(self._process.wait, seconds)
        self._process = None
        return code

    def kill_at_a_random_moment(self, test: str) -> None:
        """SIGKILL within the next seconds, and a fresh start: the same seed and test give the same moment."""
        moment = random.Random(f"{SEED} {test}").uniform(0.0, KILLED_WITHIN)
        print(f"TANDEM_E2E_SEED={SEED}: the operator is killed after {moment:.2f} s")
        self._killing = asyncio.create_task(self._kill_and_start(moment))

    async def _kill_and_start(self, moment: float) -> None:
        await asyncio.sleep(moment)
        assert self._process is not None
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        self.start()

    async def settled(self) -> None:
        """Returns once it runs and the kill, if there is to be one, is behind it: what is seen then is the outcome."""
        if self._killing is not None:
            await self._killing
        await eventually(self.ready)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it; returns the exit code."""
        if self._killing is not None:
            self._killing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._killing
            self._killing = None
        if self._process is None:
            return 0
        self._process.send_signal(number)
        code = await asyncio.to_thread(self._process.wait, DEADLINE)
        self._process = None
        return code


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> int:
    """Bytes of its resident memory at their highest."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


class World:
    """What a test sees: the API server, etcd, and RLJobs in one namespace."""

    def __init__(self, cluster: Cluster, store: Store, namespace: str) -> None:
        self.cluster = cluster
        self.store = store
        self.namespace = namespace

    async def apply(self, manifest: dict[str, Any]) -> None:
        body = {**manifest, "metadata": {"name": manifest["metadata"]["name"], "namespace": self.namespace}}
        if labels := manifest["metadata"].get("labels"):
            body["metadata"]["labels"] = labels
        await self.cluster.apply(body)

    async def submit(self, name: str = "sums", labels: dict[str, str] | None = None, **spec: Any) -> None:
        """Apply a small RLJob with ``spec`` laid over it."""
        raw = manifest(name, **spec)
        raw["metadata"]["labels"] = labels or {}
        await self.apply(raw)

    async def planned(self, name: str = "sums") -> dict[str, Any]:
        """The hybrid Job, once all other objects are there."""

        async def look() -> dict[str, Any] | None:
            found = await self.get("batch/v1", "Job", f"{name}-hybrid")
            return found if found and PLAN_ANNOTATION in found["metadata"].get("annotations", {}) else None

        return await eventually(look)

    async def pods(self, component: str = "hybrid") -> list[dict[str, Any]]:
        labels = f"app.kubernetes.io/component={component},tandem-rl.dev/job"
        return (await self.cluster.list(Selection(POD, self.namespace, labels)))[0]

    async def enter(self, phase: PhaseName, **fields: Any) -> None:
        """Write what the orchestrator of ``sums`` would."""
        given = {"epoch": 3, "iteration": 1, "weight_version": 1, "world": 1, "members": (0,), "started": 1.0}
        record = PhaseRecord(name=phase, **(given | fields))
        await self.store.put((await self.keys("sums")).phase, record.wire())

    async def status(self, name: str = "sums") -> dict[str, Any]:
        found = await self.job(name)
        assert found is not None
        status: dict[str, Any] = found.get("status", {})
        return status

    async def until_status(self, **wanted: Any) -> None:
        """Wait until the status of ``sums`` has these values."""

        async def look() -> bool:
            found = await self.status()
            return all(found.get(name) == value for name, value in wanted.items())

        try:
            await eventually(look)
        except TimeoutError:
            raise AssertionError(f"expected {wanted}, found {await self.status()}") from None

    async def evict(self, pod: dict[str, Any]) -> None:
        """Take a pod away as a drain does."""
        name = pod["metadata"]["name"]
        body = {"metadata": {"name": name, "namespace": self.namespace}}
        with config.new_client_from_config(KUBECONFIG) as session:
            evict = client.CoreV1Api(session).create_namespaced_pod_eviction
            await asyncio.to_thread(evict, name, self.namespace, body)

    async def events(self, name: str = "sums") -> list[dict[str, Any]]:
        """What the operator told of an RLJob."""
        about = f"involvedObject.kind=RLJob,involvedObject.name={name}"
        return (await self.cluster.list(Selection(EVENT, self.namespace, fields=about)))[0]

    async def change(self, name: str, **spec: Any) -> None:
        await self.cluster.patch(RLJOB, self.namespace, name, {"spec": spec})

    async def job(self, name: str) -> dict[str, Any] | None:
        return await self.cluster.get(RLJOB, self.namespace, name)

    async def get(self, api_version: str, kind: str, name: str) -> dict[str, Any] | None:
        return await self.cluster.get(Kind(api_version, kind), self.namespace, name)

    async def keys(self, name: str) -> JobKeys:
        found = await self.job(name)
        assert found is not None
        return JobKeys(self.namespace, name, found["metadata"]["uid"])

    async def condition(self, name: str, kind: str) -> dict[str, Any] | None:
        found = await self.job(name)
        conditions = (found or {}).get("status", {}).get("conditions", ())
        return next((condition for condition in conditions if condition["type"] == kind), None)

    async def until_condition(
        self, name: str, kind: str, reason: str, seconds: float = DEADLINE, words: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """The condition, once it has this reason and these words: Kubernetes may word a trouble otherwise at first."""

        async def look() -> dict[str, Any] | None:
            found = await self.condition(name, kind)
            there = found and found["reason"] == reason and all(word in found["message"] for word in words)
            return found if there else None

        try:
            return await eventually(look, seconds)
        except TimeoutError:
            raise AssertionError(f"{name}: no {kind} with reason {reason} {words}: {await self.job(name)}") from None
