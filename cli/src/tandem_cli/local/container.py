# SPDX-License-Identifier: Apache-2.0
"""One container of a pod: started, probed, restarted beside the others, ended."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from tandem_api.errors import Problem, UserError
from tandem_cli.local.environment import PodFacts, expand, variables
from tandem_cli.local.manifests import Manifest, Manifests
from tandem_cli.local.node import ContainerExit, Node
from tandem_cli.local.probes import Check, Probe, startup_probe
from tandem_cli.local.process import Process
from tandem_cli.local.rewriting import Rewriting
from tandem_cli.local.volumes import Volumes

log = structlog.get_logger()

FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 30.0
_STEADY_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Launch:
    """All that is needed to start a container's process, settled before anything is started."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    log: Path
    rewriting: Rewriting


def launch(template: Manifest, pod: PodFacts, volumes: Volumes, objects: Manifests, hosts: Mapping[str, str]) -> Launch:
    """Work out a container's process and write the files it mounts.

    Raises:
        UserError: the template needs something that is not there, or that local mode cannot do.
    """
    node = volumes.node
    if not template.get("command"):
        raise UserError(Problem(f"container {template['name']}", "has no command; local mode has no image to ask"))
    mounts = volumes.mounts(template)
    rewriting = Rewriting(mounts, hosts, volumes.empty_mounts(template))
    volumes.fill(template, rewriting)
    env = variables(template, pod, objects, rewriting)
    words = [*template["command"], *(template.get("args") or [])]
    command = [rewriting.text(expand(word, env.declared)) for word in words]
    if command[0] in ("python", "python3"):
        command[0] = node.python
    home = node.scratch.disk / str(volumes.number)
    home.mkdir(parents=True, exist_ok=True)
    temporary = {"TMPDIR": str(mounts["/tmp"])} if "/tmp" in mounts else {}  # noqa: S108 - the container's
    directory = rewriting.path(template["workingDir"]) if "workingDir" in template else home
    log_file = node.logs / f"{pod.name}-{template['name']}.log"
    return Launch(tuple(command), temporary | dict(env.seen), directory, log_file, rewriting)


class Container:
    """The life of one container.

    :meth:`run` starts it, starts it again as long as ``restart(status)`` says so, and returns its last exit status.
    ``started`` is set once the startup probe has passed. :meth:`stop` ends it for good.
    """

    def __init__(
        self, template: Manifest, pod: PodFacts, launch: Launch, node: Node, restart: Callable[[int], bool]
    ) -> None:
        self.name: str = template["name"]
        self.launch = launch
        self.restarts = 0
        self.started = asyncio.Event()
        self._pod = pod
        self._node = node
        self._restart = restart
        self._probe: Probe | None = startup_probe(template, pod.address, self._command_check)
        self._process: Process | None = None
        self._state: Manifest = {"waiting": {"reason": "PodInitializing"}}
        self._last_state: Manifest = {}
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()

    @property
    def status(self) -> Manifest:
        """An entry of the pod's containerStatuses."""
        return {
            "name": self.name,
            "ready": "running" in self._state and self.started.is_set(),
            "restartCount": self.restarts,
            "state": self._state,
            "lastState": self._last_state,
        }

    async def run(self) -> int:
        """Run until it ends for good; its last exit status."""
        backoff = FIRST_BACKOFF
        try:
            while True:
                began = time.monotonic()
                status = await self._run_once()
                seconds = time.monotonic() - began
                again = not self._stopping.is_set() and self._restart(status)
                self.restarts += again
                self._note_end(status, again)
                self._node.on_exit(ContainerExit(self._pod.name, self.name, status, seconds, self.restarts, again))
                if not again:
                    return status
                backoff = FIRST_BACKOFF if seconds > _STEADY_SECONDS else backoff
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), backoff)
                if self._stopping.is_set():
                    return status
                backoff = min(2 * backoff, LONGEST_BACKOFF)
        finally:
            self._ended.set()

    async def stop(self, grace: float) -> None:
        """Ask it to end, insist after ``grace`` seconds, and return when nothing of it is left."""
        self._stopping.set()
        if self._process is None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(max(grace, 0)):
                await self._ended.wait()
        except TimeoutError:
            log.warning(
                "a container did not end in its grace period", pod=self._pod.name, container=self.name, seconds=grace
            )
            self._process.kill()
            await self._ended.wait()

    def kill(self) -> None:
        """End it at once and for good."""
        self._stopping.set()
        if self._process is not None:
            self._process.kill()

    def _note_end(self, status: int, again: bool) -> None:
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        end = {"exitCode": status, "reason": "Error" if status else "Completed", "finishedAt": finished}
        self._last_state = {"terminated": end}
        self._state = {"waiting": {"reason": "CrashLoopBackOff"}} if again else self._last_state
        self._node.on_change()

    async def _run_once(self) -> int:
        launch = self.launch
        process = await Process.start(self._node, launch.command, launch.environment, launch.directory, launch.log)
        self._process = process
        self._state = {"running": {}}
        self._node.on_change()
        if self._stopping.is_set():
            process.kill()
        probing = asyncio.create_task(self._await_start(process))
        try:
            return await process.wait()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        finally:
            probing.cancel()

    async def _await_start(self, process: Process) -> None:
        if self._probe is None or await self._probe.passes():
            self.started.set()
            self._node.on_change()
        else:
            log.warning("a startup probe failed; the container is killed", pod=self._pod.name, container=self.name)
            process.kill()

    def _command_check(self, command: list[str]) -> Check:
        async def check() -> bool:
            words = [self.launch.rewriting.text(word) for word in command]
            process = await Process.start(
                self._node, words, self.launch.environment, self.launch.directory, self.launch.log
            )
            try:
                return await process.wait() == 0
            finally:
                process.kill()

        return check
