# SPDX-License-Identifier: Apache-2.0
"""Processes below this one, through a descriptor of ``/proc`` that was opened before it was out of sight."""

import contextlib
import os
import re
import signal
from collections.abc import Iterator

_PROPORTIONAL = re.compile(rb"^Pss: +(\d+) kB$", re.MULTILINE)


class Processes:
    """Descendants of a process, children that its dead children left included (it is their subreaper)."""

    def __init__(self, proc: int) -> None:
        self._proc = proc

    def children(self, pid: int) -> list[int]:
        """The children of ``pid`` at this moment."""
        found: list[int] = []
        with contextlib.suppress(OSError):
            for thread in self._entries(f"{pid}/task"):
                with contextlib.suppress(OSError):
                    found += map(int, self._read(f"{pid}/task/{thread}/children").split())
        return found

    def below(self, pid: int) -> Iterator[int]:
        """Every descendant of ``pid`` at this moment."""
        for child in self.children(pid):
            yield child
            yield from self.below(child)

    def resident(self, pid: int) -> int:
        """Bytes of memory that the descendants of ``pid`` have resident, shared pages in equal parts."""
        total = 0
        for child in self.below(pid):
            with contextlib.suppress(OSError):
                found = _PROPORTIONAL.search(self._read(f"{child}/smaps_rollup"))
                total += int(found[1]) * 1024 if found else 0
        return total

    def end(self, pid: int) -> None:
        """Kill every descendant of ``pid``, which is this process, and wait until there is none."""
        while True:
            for child in list(self.below(pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return

    def _entries(self, path: str) -> list[str]:
        place = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._proc)
        try:
            return os.listdir(place)  # noqa: PTH208 - a descriptor has no path
        finally:
            os.close(place)

    def _read(self, path: str) -> bytes:
        file = os.open(path, os.O_RDONLY, dir_fd=self._proc)
        try:
            return os.read(file, 2**16)
        finally:
            os.close(file)
