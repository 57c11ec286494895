# SPDX-License-Identifier: Apache-2.0
"""Process 1 of a container in local mode, run as a script: ``python -I -S supervisor.py SCRATCH COMMAND…``.

A container's processes die with its first process, and with whoever started the run, even by SIGKILL:

- this process is a child subreaper, so whatever the command starts, in whatever session or process group, stays its
  descendant, and is killed when the command ends;
- its standard input is a pipe held by the starter alone: at end of file the starter is gone, everything here is
  killed, and the directories SCRATCH (separated by colons) that the starter can no longer remove are removed;
- should this process be killed itself, the kernel kills the command.

What the starter asks for comes through that pipe too, a byte each: TERMINATE sends SIGTERM to the command, as a kubelet
does, and KILL kills everything. A signal would be lost that comes before this process listens, a byte waits. The exit
status is the command's, or 128 plus the signal that ended it.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TERMINATE, KILL = b"t", b"k"
_CANNOT_START = 127


def main(scratch: str, command: list[str]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    signals = _signal_pipe()
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        )
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        return _CANNOT_START
    status = _watch(child.pid, signals)
    _kill_descendants()
    if status is None:
        for directory in scratch.split(":"):
            shutil.rmtree(directory, ignore_errors=True)
        return 128 + signal.SIGKILL
    return status


def _signal_pipe() -> int:
    """A descriptor on which something can be read when signals have arrived."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    # SIGINT and SIGHUP of a terminal are meant for whoever started the run. They get a handler that does nothing:
    # ignored signals would stay ignored in the command, handlers do not outlive exec.
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return reading


def _watch(child: int, signals: int) -> int | None:
    """The command's exit status once it has ended; None if the starter ended first."""
    lifeline = sys.stdin.fileno()
    while True:
        readable, _, _ = select.select([signals, lifeline], [], [])
        if lifeline in readable:
            asked = os.read(lifeline, 4096)
            if not asked:
                return None
            if KILL in asked:
                _kill_descendants()
                return 128 + signal.SIGKILL
            os.kill(child, signal.SIGTERM)
        if signals in readable:
            os.read(signals, 4096)
            if (status := _reap(child)) is not None:
                return status


def _reap(child: int) -> int | None:
    """Collect whoever has ended; the exit status of ``child`` if it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            if ended[0] == child:
                code = os.waitstatus_to_exitcode(ended[1])
                status = code if code >= 0 else 128 - code
    return status


def _kill_descendants() -> None:
    """Kill until none is left: what is forked meanwhile becomes our child and is killed in the next round."""
    while True:
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def descendants(ancestor: int) -> list[int]:
    """Process ids of all processes below ``ancestor``."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The command's name, in parentheses, may itself contain anything.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = list(children.get(ancestor, []))
    for pid in found:
        found.extend(children.get(pid, []))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
