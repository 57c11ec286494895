# SPDX-License-Identifier: Apache-2.0
"""A cluster of one container without a kubelet: a process id namespace of its own, in which commands are executed as a
container runtime does it, behind the interface of the client that talks to an API server."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from kubernetes.stream import ws_client
from waiting import DEADLINE, until

from tandem_api.labels import HYBRID, ORCHESTRATOR
from tandem_cli.chaos.targets import children_of
from tandem_cli.cluster.objects import Container, Job, Pod

# Process 1, which no signal from within its namespace reaches, with a child that one does.
_FIRST = "import json, os, subprocess, sys; sys.exit(subprocess.call(json.loads(os.environ['CHILD'])))"
_FOR_LONG = "import time; time.sleep(600)"


class Sandbox:
    """One container in which ``words`` are on the command line of process 1's child."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        child = [sys.executable, "-I", "-S", "-c", _FOR_LONG, *words]
        self._environment = {**os.environ, **environment, "CHILD": json.dumps(child)}
        isolated = ("unshare", "--user", "--map-root-user", "--fork", "--pid", "--mount-proc", "--kill-child")
        command = (*isolated, sys.executable, "-I", "-S", "-c", _FIRST)
        self._process = subprocess.Popen(command, env=self._environment)
        self.first = until(lambda: next(iter(children_of(self._process.pid)), None), DEADLINE, "process 1")
        self.child = until(partial(_started, self.first, words[0]), DEADLINE, "its child")

    def execute(self, command: Sequence[str]) -> "Call":
        inside = ("nsenter", "--user", "--preserve-credentials", "--pid", "--mount", "--target", str(self.first))
        program = sys.executable if command[0] == "python" else command[0]
        return Call([*inside, program, *command[1:]], self._environment)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def _started(first: int, word: str) -> int | None:
    """The child of ``first``, once it runs the program with ``word`` on its command line."""
    return next((pid for pid in children_of(first) if word in Path(f"/proc/{pid}/cmdline").read_text()), None)


class Call:
    """A command under way, as the client's WSClient shows it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process = subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload]
        self._files = {
            ws_client.STDOUT_CHANNEL: self._process.stdout.fileno(),
            ws_client.STDERR_CHANNEL: self._process.stderr.fileno(),
        }
        self._read: dict[int, bytes] = dict.fromkeys(self._files, b"")
        self._open = True

    def is_open(self) -> bool:
        return self._open

    def update(self, timeout: float) -> None:
        ready = select.select(self._files.values(), [], [], timeout)[0]
        for channel, file in self._files.items():
            if file in ready:
                text = os.read(file, 2**16)
                self._read[channel] += text
                self._open = self._open and (bool(text) or channel != ws_client.STDOUT_CHANNEL)

    def read_channel(self, channel: int) -> bytes:
        text, self._read[channel] = self._read[channel], b""
        return text

    def write_channel(self, _: int, text: bytes) -> None:
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def close_channel(self, _: int) -> None:
        self._process.stdin.close()

    def close(self) -> None:
        self._open = False
        for file in (self._process.stdin, self._process.stdout, self._process.stderr):
            file.close()
        self._process.wait()


class FakeCluster:
    """One job whose orchestrator and hybrid pod are the same sandbox."""

    def __init__(self, job: Job, sandbox: Sandbox) -> None:
        self._job = job
        self._sandbox = sandbox
        self.deleted: list[str] = []
        self.executed: list[tuple[str, str]] = []

    @property
    def connection(self) -> "FakeCluster":
        return self

    def job(self, name: str, namespace: str | None = None) -> Job:
        return self._job

    def pods(self, job: Job) -> list[Pod]:
        return [_pod(ORCHESTRATOR, None, ORCHESTRATOR), _pod(HYBRID, 0, "engine", "trainer")]

    def attach(self, namespace: str, pod: str, container: str, command: Sequence[str]) -> Call:
        self.executed.append((pod, container))
        return self._sandbox.execute(command)

    def delete_pod(self, namespace: str, name: str) -> None:
        self.deleted.append(name)


def _pod(component: str, index: int | None, *containers: str) -> Pod:
    running = tuple(Container(name, ready=True, restarts=0, state="Running") for name in containers)
    return Pod(f"{component}-pod", component, index, "Running", "node", 0.0, running)


@contextmanager
def fake_cluster(
    raw: dict[str, Any], words: Sequence[str], environment: Mapping[str, str]
) -> Iterator[tuple[FakeCluster, Sandbox]]:
    sandbox = Sandbox(words, environment)
    try:
        yield FakeCluster(Job.of(raw), sandbox), sandbox
    finally:
        sandbox.close()


def state_of(pid: int) -> str:
    """The letter that the kernel has for what a process does: T is stopped, Z and X are gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the latter: it ended between opening and reading
        return "X"
