# SPDX-License-Identifier: Apache-2.0
"""The processes that a deed is done to: how they are told apart, found and held.

Needs nothing but Python, since it is also sent as source text into containers (:mod:`.program`).
"""

import contextlib
import itertools
import os
import select
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 30.0
"""How long a target that is not there just now, since it starts again, is waited for."""

LOOK_SECONDS = 0.1

type Order = Mapping[str, Any]


class Refused(Exception):
    """It cannot be done here; the message says why."""


class Process:
    """A process, held by a descriptor: no other that gets its number later is ever meant."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def close(self) -> None:
        os.close(self._descriptor)

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    @property
    def alive(self) -> bool:
        return not select.select([self._descriptor], [], [], 0)[0]


class Targets:
    """The processes that an order means: those of a component, and of one pod where ``index`` says so.

    ``first`` are those that the component started with, ``all`` what they have started as well. Only descendants of
    the process ``ancestor`` are looked at; all processes if it is absent.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.first: list[Process] = []
        self.all: list[Process] = []
        self.find()

    def find(self) -> bool:
        """Look for them; whether there are any."""
        table = _table()
        ancestor = self.order.get("ancestor")
        candidates = _below(table, {ancestor}) if ancestor is not None else set(table)
        found = {pid for pid in candidates if pid != os.getpid() and self._meant(pid)}
        first = {pid for pid in found if table[pid] not in found}
        if self.order["component"] in ("engine", "trainer", "pod"):
            found |= _below(table, found)
        for process in self.all:
            process.close()
        self.all = list(_held(found))
        self.first = [process for process in self.all if process.pid in first]
        return bool(self.first)

    def demand(self) -> None:
        """Have living targets, waiting for them a while.

        Raises:
            Refused: there are none.
        """
        until = time.monotonic() + PATIENCE_SECONDS
        while not self.first or not all(process.alive for process in self.first):
            if self.find():
                return
            if time.monotonic() > until:
                raise Refused(f"there is no {_name(self.order)}")
            time.sleep(LOOK_SECONDS)

    @property
    def alive(self) -> bool:
        return any(process.alive for process in self.all)

    @property
    def whole(self) -> bool:
        return all(process.alive for process in self.all)

    def variable(self, name: str) -> str | None:
        """The value of an environment variable of theirs."""
        found = (one.partition("=") for process in self.first for one in _read(process.pid, "environ"))
        return next((value for key, _, value in found if key == name), None)

    def signal(self, number: signal.Signals) -> None:
        for process in self.all:
            process.signal(number)

    def _meant(self, pid: int) -> bool:
        words = _read(pid, "cmdline")
        if not words or any(word.endswith("supervisor.py") for word in words):
            return False
        component, index = self.order["component"], self.order.get("index")
        if component == "etcd":
            return words[0].endswith("/etcd")
        variables = _read(pid, "environ")
        if index is not None and f"JOB_COMPLETION_INDEX={index}" not in variables:
            return False
        return component == "pod" or _is(component, words, variables)


def _is(component: str, words: list[str], variables: list[str]) -> bool:
    if component == "engine":
        return any(word.startswith("vllm.entrypoints") for word in words)
    is_module = any(pair == ("-m", f"tandem_{component}") for pair in itertools.pairwise(words))
    # The agent's command line names the trainer's module as well; only its ranks have a rank.
    return is_module and (component != "trainer" or any(one.startswith("LOCAL_RANK=") for one in variables))


def _name(order: Order) -> str:
    index = order.get("index")
    return str(order["component"]) + (f" of pod {index}" if index is not None else "")


def _read(pid: int, file: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def _table() -> dict[int, int]:
    """The parent of each process."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The command's name, in parentheses, may itself contain anything.
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return parents


def _below(table: Mapping[int, int], ancestors: set[int]) -> set[int]:
    """All descendants of ``ancestors``."""
    children: dict[int, list[int]] = {}
    for pid, parent in table.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    rest = list(ancestors)
    while rest:
        new = [pid for pid in children.get(rest.pop(), ()) if pid not in found]
        found.update(new)
        rest.extend(new)
    return found


def open_files(pid: int) -> list[tuple[Path, str]]:
    """The descriptors of a process, as files, with what each leads to; none of a process that is gone."""
    found = []
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append((file, str(file.readlink())))
    return found


def children_of(pid: int) -> list[int]:
    return [child for child, parent in _table().items() if parent == pid]


def _held(pids: set[int]) -> Iterator[Process]:
    for pid in sorted(pids):
        with contextlib.suppress(ProcessLookupError):
            yield Process(pid)
