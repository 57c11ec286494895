# SPDX-License-Identifier: Apache-2.0
"""Processes for scoring code that may hang, eat memory or die: one question at a time, killed when one takes long."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import structlog

from tandem_orchestrator.rewards.score import Unscored

log = structlog.get_logger()

_START_SECONDS = 120.0
_REPLACE_SECONDS = 10.0
_LINE_LIMIT = 64 * 2**20


class WorkerPool:
    """Up to ``count`` processes of :mod:`tandem_orchestrator.rewards.worker`, started when first needed.

    ``kind`` is what they score with, ``settings`` what it is set up with. A question that takes longer than
    ``timeout`` seconds, or kills its worker, is answered by :class:`Unscored`, and a new process takes the place.
    """

    def __init__(self, kind: str, settings: Mapping[str, Any], *, count: int, timeout: float, memory: int) -> None:
        self._command = (kind, json.dumps(settings), str(memory))
        self._timeout = timeout
        self._count = count
        self._idle: asyncio.Queue[_Worker] | None = None
        self._all: list[_Worker] = []

    async def ask(self, question: Mapping[str, Any]) -> float:
        """The score of one question.

        Raises:
            Unscored: it took too long, the worker died, or the scoring code raised.
        """
        if self._idle is None:
            self._idle = asyncio.Queue()
            self._all = [_Worker(self._command) for _ in range(self._count)]
            for worker in self._all:
                self._idle.put_nowait(worker)
        worker = await self._idle.get()
        try:
            return await worker.ask(question, self._timeout)
        finally:
            self._idle.put_nowait(worker)

    async def close(self) -> None:
        """Kill the processes. Questions must have been answered or cancelled."""
        for worker in self._all:
            await worker.stop()


class _Worker:
    """One pair of processes: the first has loaded the scoring code, the second, forked from it, answers.

    Invariant: between two calls the answering process waits for a question, or no process is alive.
    """

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._answering = 0
        self._asked = 0

    async def ask(self, question: Mapping[str, Any], timeout: float) -> float:
        try:
            reply = await self._reply(question, timeout)
        except OSError as error:
            await self.stop()
            raise Unscored("the scoring process died", str(error)) from error
        except asyncio.CancelledError:
            await self.stop()
            raise
        if "error" in reply:
            raise Unscored("the scoring code failed", reply["error"])
        return float(reply["score"])

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()

    async def _reply(self, question: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        process = await self._running()
        self._asked += 1
        try:
            async with asyncio.timeout(timeout):
                await self._send(process, {"id": self._asked, "timeout": timeout, **question})
                return await self._answer(process)
        except TimeoutError:
            await self._replace(process)
            raise Unscored("scoring took too long", f"more than {timeout:g} s") from None

    async def _answer(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        """The answer to the last question; what was said before it was asked is passed over."""
        while True:
            said = await self._line(process)
            if said.get("id") == self._asked:
                return said
            if "ready" in said:
                self._answering = said["ready"]
                raise BrokenPipeError("the answering process died of the question")

    async def _replace(self, process: asyncio.subprocess.Process) -> None:
        """Kill the answering process and wait for the next one."""
        try:
            os.kill(self._answering, signal.SIGKILL)
            async with asyncio.timeout(_REPLACE_SECONDS):
                await self._ready(process)
        except (OSError, TimeoutError):
            await self.stop()

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tandem_orchestrator.rewards.worker",
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=_LINE_LIMIT,
        )
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._ready(process)
        except Unscored:
            await self.stop()
            raise
        log.info("scoring process is ready", kind=self._command[0], pid=process.pid)
        return process

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        """Wait until a process is there to answer."""
        while "ready" not in (said := await self._line(process)):
            if "id" not in said:
                raise Unscored("the scoring code cannot be loaded", said["error"])
        self._answering = said["ready"]

    async def _send(self, process: asyncio.subprocess.Process, question: Mapping[str, Any]) -> None:
        if process.stdin is None:
            raise BrokenPipeError("its standard input is closed")
        process.stdin.write(json.dumps(question).encode() + b"\n")
        await process.stdin.drain()

    async def _line(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        line = await process.stdout.readline() if process.stdout else b""
        if not line:
            raise BrokenPipeError(f"it ended with {await process.wait()}")
        said: dict[str, Any] = json.loads(line)
        return said
