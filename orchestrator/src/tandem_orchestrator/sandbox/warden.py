# SPDX-License-Identifier: Apache-2.0
"""The process that forks one program, watches it, and ends everything that came of it."""

import fcntl
import os
import resource
import select
import shutil
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from tandem_orchestrator.sandbox import kernel, namespaces, notifications, program, seccomp
from tandem_orchestrator.sandbox.confinement import House, Isolation, confine
from tandem_orchestrator.sandbox.processes import Processes
from tandem_orchestrator.sandbox.runs import Limits, Outcome, Verdict

_CLONE_THREAD = 0x10000
_COMPLAINT = 4096
_CONFINING_SECONDS = 10.0
_LOOK_PERIOD = 0.02
_PIECE = 2**16
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class ConfinementFailed(Exception):
    """The program was not run, since its process could not be confined."""


@dataclass(slots=True)
class _Descriptors:
    """The warden's ends; ``listener`` is there once the program runs and the kernel asks."""

    output: int
    complaint: int
    word: socket.socket
    exit: int
    listener: int = -1


@dataclass(slots=True)
class _Seen:
    """What was seen of the program so far."""

    output: bytearray = field(default_factory=bytearray)
    complaint: bytearray = field(default_factory=bytearray)
    tasks: int = 0
    processes: bool = False
    verdict: Verdict | None = None
    rule: str | None = None
    exited: bool = False
    cancelled: bool = False


class Warden:
    """Runs one program. ``client`` becomes readable when the answer is no longer wanted.

    Invariant: when :meth:`run` is over, nothing of the program is left, however it is over.
    """

    def __init__(self, house: House, limits: Limits, work: Path, proc: int, client: socket.socket) -> None:
        self._house = house
        self._limits = limits
        self._work = work
        self._processes = Processes(proc)
        self._client = client
        self._seen = _Seen()
        self._pid = 0

    def run(self, source: bytes, given: bytes) -> Outcome:
        """Run ``source`` with ``given`` as standard input.

        Raises:
            ConfinementFailed: the program was not run.
        """
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        if self._house.isolation is Isolation.NAMESPACES:
            namespaces.enter_own()
        else:
            self._work.mkdir(mode=0o700)
        ends = self._begin(source, given)
        try:
            self._await_confined(ends)
            began = time.monotonic()
            self._watch(ends, began + self._limits.seconds)
            seconds = time.monotonic() - began
        finally:
            status, usage = self._end()
        self._drain(ends)
        return self._outcome(status, usage, seconds)

    def _begin(self, source: bytes, given: bytes) -> _Descriptors:
        stdin = _sealed(given)
        output, stdout = os.pipe()
        complaint, stderr = os.pipe()
        word, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            self._become(source, (stdin, stdout, stderr), theirs)
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)
        theirs.close()
        os.set_blocking(output, False)
        os.set_blocking(complaint, False)
        return _Descriptors(output, complaint, word, os.pidfd_open(self._pid))

    def _become(self, source: bytes, standard: tuple[int, int, int], warden: socket.socket) -> NoReturn:
        try:
            # Standard descriptors are taken in the zygote, so none of these is below 3.
            for number, descriptor in enumerate(standard):
                os.dup2(descriptor, number)
            os.dup2(warden.fileno(), 3)
            os.closerange(4, 2**31 - 1)
            word = socket.socket(fileno=3)
            warden.detach()
            work = namespaces.WORK if self._house.isolation is Isolation.NAMESPACES else str(self._work)
            confine(self._house, self._limits, work, word)
        except BaseException as error:  # noqa: BLE001 - the warden must hear of any, and the program not run
            os.write(3, f"E{type(error).__name__}: {error}".encode())
            os._exit(1)
        program.become(source)

    def _await_confined(self, ends: _Descriptors) -> None:
        ends.word.settimeout(_CONFINING_SECONDS)
        try:
            said, passed, _, _ = socket.recv_fds(ends.word, 4096, 1)
        except TimeoutError as error:
            raise ConfinementFailed(f"confining took more than {_CONFINING_SECONDS:g} s") from error
        if said != b"R":
            raise ConfinementFailed(said[1:].decode(errors="replace") or "the process died while it was confined")
        if passed:
            ends.listener = passed[0]

    def _watch(self, ends: _Descriptors, deadline: float) -> None:
        """Until the program has ended or must be ended. What is seen to end after ``deadline`` has ended too late."""
        poll = select.poll()
        # A listener without processes left to listen to reports a hang-up only.
        for descriptor in (ends.output, ends.complaint, ends.exit, ends.listener, self._client.fileno()):
            if descriptor >= 0:
                poll.register(descriptor, select.POLLIN)
        looks = self._house.isolation is not Isolation.NAMESPACES
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                self._stop(Verdict.TIMEOUT)
            if self._over():
                return
            period = _LOOK_PERIOD if looks or self._seen.processes else left
            for descriptor, events in poll.poll(1000 * min(left, period) + 1):
                if not self._handle(ends, descriptor, events):
                    poll.unregister(descriptor)
            if looks or self._seen.processes:
                self._look()

    def _handle(self, ends: _Descriptors, descriptor: int, events: int) -> bool:
        """Whether ``descriptor`` is worth watching further."""
        if descriptor == ends.listener:
            if events & select.POLLIN:
                self._decide(ends.listener)
            return not events & select.POLLHUP
        if descriptor == ends.exit:
            self._seen.exited = True
        elif descriptor == ends.output:
            return self._read_output(descriptor)
        elif descriptor == ends.complaint:
            return self._read_complaint(descriptor)
        else:
            self._seen.cancelled = True
        return True

    def _decide(self, listener: int) -> None:
        asked = notifications.receive(listener)
        if asked is None:
            return
        rule = seccomp.rule_of(asked.number, asked.first_argument)
        if rule == "processes" and self._seen.tasks < self._limits.tasks:
            self._seen.tasks += 1
            self._seen.processes |= not asked.first_argument & _CLONE_THREAD
            notifications.let_go(listener, asked)
        else:
            self._stop(Verdict.KILLED, rule)

    def _look(self) -> None:
        """What no limit of the kernel's bounds: memory of all processes together, and a directory of this machine's."""
        if self._seen.processes and self._processes.resident(os.getpid()) > (
            self._limits.memory + self._house.interpreter
        ):
            self._stop(Verdict.MEMORY)
        if self._house.isolation is Isolation.NAMESPACES:
            return
        size = entries = 0
        for entry in os.scandir(self._work):
            size += entry.stat(follow_symlinks=False).st_blocks * 512
            entries += 1
        if size > self._limits.disk or entries > self._limits.entries:
            self._stop(Verdict.KILLED, "disk")

    def _read_output(self, descriptor: int) -> bool:
        try:
            piece = os.read(descriptor, _PIECE)
        except BlockingIOError:
            return True
        self._seen.output += piece
        if len(self._seen.output) > self._limits.output:
            self._stop(Verdict.OUTPUT)
        return bool(piece)

    def _read_complaint(self, descriptor: int) -> bool:
        try:
            piece = os.read(descriptor, _PIECE)
        except BlockingIOError:
            return True
        self._seen.complaint = (self._seen.complaint + piece)[-_COMPLAINT:]
        return bool(piece)

    def _stop(self, verdict: Verdict, rule: str | None = None) -> None:
        if self._seen.verdict is None:
            self._seen.verdict, self._seen.rule = verdict, rule

    def _over(self) -> bool:
        return self._seen.exited or self._seen.cancelled or self._seen.verdict is not None

    def _end(self) -> tuple[int, resource.struct_rusage]:
        os.kill(self._pid, signal.SIGKILL)
        _, status, usage = os.wait4(self._pid, 0)
        self._processes.end(os.getpid())
        if self._house.isolation is not Isolation.NAMESPACES:
            shutil.rmtree(self._work)
        return status, usage

    def _drain(self, ends: _Descriptors) -> None:
        """What is still in the pipes; nobody is left to write."""
        if self._seen.verdict is None:
            while self._seen.verdict is None and self._read_output(ends.output):
                pass
        while self._read_complaint(ends.complaint):
            pass

    def _outcome(self, status: int, usage: resource.struct_rusage, seconds: float) -> Outcome:
        cpu = usage.ru_utime + usage.ru_stime
        code = os.waitstatus_to_exitcode(status)
        verdict, rule = self._seen.verdict, self._seen.rule
        stopped = verdict is not None
        if verdict is None:
            verdict, rule = _natural(code, cpu, self._limits)
        return Outcome(
            verdict=verdict,
            rule=rule,
            exit_code=None if stopped else code,
            output=bytes(self._seen.output[: self._limits.output]),
            complaint=self._seen.complaint.decode(errors="replace"),
            seconds=seconds,
            cpu_seconds=cpu,
        )


def _natural(code: int, cpu: float, limits: Limits) -> tuple[Verdict, str | None]:
    """The verdict on a program that ended by itself, or by a limit of the kernel's."""
    if code == 0:
        return Verdict.PASSED, None
    if code == program.OUT_OF_MEMORY:
        return Verdict.MEMORY, None
    if code == -signal.SIGSYS:
        return Verdict.KILLED, "system call"
    if code in (-signal.SIGXCPU, -signal.SIGKILL) and cpu >= limits.seconds:
        return Verdict.TIMEOUT, None
    return Verdict.CRASHED, None


def _sealed(text: bytes) -> int:
    """A descriptor of a file in memory with ``text`` that can be read and not written."""
    descriptor = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    left = memoryview(text)
    while left:
        left = left[os.write(descriptor, left) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor
