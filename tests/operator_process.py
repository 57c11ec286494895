# SPDX-License-Identifier: Apache-2.0
"""The operator as a process of this machine, with an etcd of its own, against a real API server."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tandem_api.keys import JobKeys
from tandem_operator.cluster import RLJOB, Cluster, Kind
from tandem_phases.store import Store

DEADLINE = 40.0
KUBECONFIG = os.environ.get(
    "TANDEM_E2E_KUBECONFIG", str(Path(__file__).parents[1] / "build" / "cluster" / "kubeconfig")
)


async def eventually[T](look: Callable[[], Awaitable[T | None]], seconds: float = DEADLINE) -> T:
    """The first result of ``look`` that is neither None nor False."""
    async with asyncio.timeout(seconds):
        while True:
            if found := await look():
                return found
            await asyncio.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class OperatorProcess:
    """One replica. Configured for one namespace, in which its Lease lies too."""

    def __init__(self, directory: Path, namespace: str, endpoints: tuple[str, ...], identity: str, **settings: Any):
        self._port = 0
        self._identity = identity
        self._log = directory / f"{identity}.log"
        self._config = directory / f"{identity}.json"
        self._settings = {
            "images": dict.fromkeys(("orchestrator", "engine", "trainer"), "tandem.invalid/none:1"),
            "etcd": {"endpoints": endpoints},
            "namespaces": [namespace],
            "leaderElection": {"namespace": namespace, "duration": 6, "renewDeadline": 4, "retryPeriod": 1},
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> None:
        # A port of its own each time: while it was down, another process may have taken the last one.
        self._port = free_port()
        self._config.write_text(json.dumps(self._settings | {"port": self._port}))
        environment = os.environ | {
        self._killing: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Host and port of its HTTP server."""
        return f"127.0.0.1:{self._port}"
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
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    async def ended(self, seconds: float) -> int:
        """Wait until it ends by itself; returns the exit code."""
        assert self._process is not None
        code = await asyncio.to_thread(self._process.wait, seconds)
        self._process = None
        return code

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it; returns the exit code."""
        if self._process is None:
            return 0
        self._process.send_signal(number)
        code = await asyncio.to_thread(self._process.wait, 30)
        self._process = None
        return code


class World:
    """What a test sees: the API server, etcd, and RLJobs in one namespace."""

    def __init__(self, cluster: Cluster, store: Store, namespace: str) -> None:
        self.cluster = cluster
        self.store = store
        self.namespace = namespace

    async def apply(self, manifest: dict[str, Any]) -> dict[str, Any]:
        body = {**manifest, "metadata": {"name": manifest["metadata"]["name"], "namespace": self.namespace}}
        if labels := manifest["metadata"].get("labels"):
            body["metadata"]["labels"] = labels
        return await self.cluster.apply(body)

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

    async def until_condition(self, name: str, kind: str, reason: str, seconds: float = DEADLINE) -> dict[str, Any]:
        async def look() -> dict[str, Any] | None:
            found = await self.condition(name, kind)
            return found if found and found["reason"] == reason else None

        try:
            return await eventually(look, seconds)
        except TimeoutError:
            raise AssertionError(f"{name}: no {kind} with reason {reason}: {await self.job(name)}") from None
