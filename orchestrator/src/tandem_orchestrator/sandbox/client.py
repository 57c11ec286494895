# SPDX-License-Identifier: Apache-2.0
"""The sandbox as the orchestrator sees it."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import structlog

from tandem_api.errors import TandemError
from tandem_orchestrator.sandbox import wire
from tandem_orchestrator.sandbox.processes import Processes
from tandem_orchestrator.sandbox.runs import Limits, Outcome, Verdict, same_output

log = structlog.get_logger()

_IN_MEMORY = ("/dev/shm", "/run/tandem", tempfile.gettempdir())  # noqa: S108 - a directory of our own is made there
_ATTEMPTS = 2
_STOP_SECONDS = 10.0
_GONE_SECONDS = 30.0
_LOOK_PERIOD = 0.005


class SandboxError(TandemError):
    """The sandbox itself failed; nothing is known of the program."""


class Sandbox:
    """Runs untrusted Python programs, ``concurrent`` at a time.

    Life cycle: :meth:`start`, then :meth:`run` from any task of one event loop, then :meth:`close`. A zygote that died
    is started again. ``without`` names means to do without, for tests; see :mod:`.zygote`.

    >>> sandbox = Sandbox(concurrent=2)                                                  # doctest: +SKIP
    >>> sandbox.start()
    >>> (await sandbox.run("print(int(input()) + 1)", "1", expected="2")).verdict
    <Verdict.PASSED: 'passed'>
    >>> sandbox.close()
    """

    def __init__(self, concurrent: int, without: Collection[str] = ()) -> None:
        self._slots = asyncio.Semaphore(concurrent)
        self._without = ",".join(without)
        self._zygote: subprocess.Popen[bytes] | None = None
        self._directory = Path()
        self._starting = threading.Lock()
        self.described: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the zygote, which takes a moment, if none is alive.

        Raises:
            SandboxError: it does not start.
        """
        with self._starting:
            if self._zygote is not None and self._zygote.poll() is None:
                return
            self._remove()
            self._directory = Path(tempfile.mkdtemp(prefix="tandem-sandbox-", dir=_memory_directory()))
            self._zygote = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-B",
                    "-s",
                    "-m",
                    "tandem_orchestrator.sandbox.zygote",
                    self._directory,
                    self._without,
                ],
                env={"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1", "PYTHONHASHSEED": "0"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            line = self._zygote.stdout.readline() if self._zygote.stdout else b""
            if not line:
                raise SandboxError(f"the sandbox does not start; its zygote ended with {self._zygote.wait()}")
            self.described = json.loads(line)
            log.info("sandbox has started", pid=self._zygote.pid, **self.described)

    async def run(
        self, source: str, given: str = "", *, expected: str | None = None, limits: Limits | None = None
    ) -> Outcome:
        """Run ``source`` with ``given`` as standard input; compare its output with ``expected``, if there is one.

        Cancelling ends the program.

        Raises:
            SandboxError: the sandbox failed, twice.
        """
        request = wire.packed(asdict(limits or Limits()), _bytes(source), _bytes(given))
        async with self._slots:
            outcome = await self._persistently(request)
        if outcome.verdict is Verdict.PASSED and expected is not None:
            right = await asyncio.to_thread(same_output, outcome.output, _bytes(expected))
            return outcome if right else replace(outcome, verdict=Verdict.WRONG)
        return outcome

    def close(self) -> None:
        """End the zygote. Programs that still run end with it."""
        with self._starting:
            self._remove()

    def left_behind(self) -> list[str]:
        """What is there of runs that are over: processes, and files. Waits a moment for wardens to go."""
        if self._zygote is None:
            return []
        deadline = time.monotonic() + _GONE_SECONDS
        while (left := self._left(self._zygote.pid)) and time.monotonic() < deadline:
            time.sleep(_LOOK_PERIOD)
        return left

    def _left(self, zygote: int) -> list[str]:
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        try:
            processes = [f"process {pid}" for pid in Processes(proc).below(zygote)]
        finally:
            os.close(proc)
        return processes + [f"directory {path.name}" for path in (self._directory / "work").iterdir()]

    async def _persistently(self, request: bytes) -> Outcome:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._once(request)
            except (OSError, EOFError) as error:
                if attempt == _ATTEMPTS:
                    raise SandboxError(f"the sandbox does not answer: {type(error).__name__}: {error}") from error
                await asyncio.to_thread(self.start)
        raise AssertionError("the loop returns or raises")

    async def _once(self, request: bytes) -> Outcome:
        reader, writer = await asyncio.open_unix_connection(self._directory / "socket")
        try:
            writer.write(request)
            await writer.drain()
            sizes = wire.HEAD.unpack(await reader.readexactly(wire.HEAD.size))
            header, output, _ = [await reader.readexactly(size) for size in sizes]
        finally:
            writer.close()
        told = json.loads(header)
        if "failed" in told:
            raise SandboxError(f"a program was not run to its end: {told['failed']}")
        return Outcome.of(told, output)

    def _remove(self) -> None:
        zygote, self._zygote = self._zygote, None
        if zygote is None:
            return
        if zygote.stdin is not None:
            zygote.stdin.close()
        try:
            zygote.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            zygote.kill()
            zygote.wait()
        if zygote.stdout is not None:
            zygote.stdout.close()
        shutil.rmtree(self._directory, ignore_errors=True)


def _memory_directory() -> str:
    """Where a small directory can be made, in memory if possible.

    Raises:
        SandboxError: nowhere.
    """
    for path in _IN_MEMORY:
        with contextlib.suppress(OSError):
            Path(tempfile.mkdtemp(dir=path)).rmdir()
            return path
    raise SandboxError(f"none of {', '.join(_IN_MEMORY)} can be written; mount an emptyDir there")


def _bytes(text: str) -> bytes:
    """Lone surrogates, which a model can write, become question marks."""
    return text.encode(errors="replace")
