# SPDX-License-Identifier: Apache-2.0
"""What a program's process does to itself before the program's first line."""

import math
import os
import resource
import signal
import socket
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tandem_orchestrator.sandbox import kernel, landlock, namespaces, seccomp
from tandem_orchestrator.sandbox.runs import Limits

READABLE = tuple(dict.fromkeys((sys.prefix, sys.base_prefix, "/usr/lib", "/usr/local/lib", "/usr/share/zoneinfo")))
LIBRARIES = ("/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Isolation(StrEnum):
    """What keeps a program's files and processes apart from the machine's."""

    NAMESPACES = "namespaces"
    LANDLOCK = "landlock"


@dataclass(frozen=True, slots=True)
class House:
    """What all programs of a zygote have in common.

    ``ask`` is whether the kernel asks about calls under a rule, ``landlock`` whether it has Landlock,
    ``interpreter`` the bytes of address space that a program's process has before the program.
    """

    isolation: Isolation
    ask: bool
    landlock: bool
    interpreter: int


def address_space() -> int:
    """Bytes of address space of this process."""
    return int(Path("/proc/self/statm").read_bytes().split()[0]) * _PAGE


def visible() -> tuple[str, ...]:
    """Paths that a program can read."""
    return (*READABLE, *LIBRARIES, *namespaces.DEVICES)


def confine(house: House, limits: Limits, work: str, warden: socket.socket) -> None:
    """Give up all but what a program may have, and tell the warden, over the last descriptor that is not standard.

    The descriptor that notifications come from goes with the word, where the kernel asks.

    Raises:
        OSError: something could not be given up; the program must not run.
    """
    os.setsid()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if house.isolation is Isolation.NAMESPACES:
        namespaces.mount_work(limits.disk, limits.entries)
    os.chdir(work)
    os.umask(0o077)
    _limit(limits, house.interpreter)
    kernel.drop_capabilities()
    if house.landlock:
        landlock.restrict(_rules(house.isolation, work))
    listener = seccomp.install(os.getpid(), ask=house.ask)
    socket.send_fds(warden, [b"R"], [] if listener is None else [listener])
    if listener is not None:
        os.close(listener)
    warden.close()


def _limit(limits: Limits, interpreter: int) -> None:
    seconds = math.ceil(limits.seconds) + 1
    for name, most in {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: interpreter + limits.memory,
        resource.RLIMIT_FSIZE: limits.disk,
        resource.RLIMIT_NOFILE: limits.descriptors,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }.items():
        hard = resource.getrlimit(name)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(name, (most, most))


def _rules(isolation: Isolation, work: str) -> list[tuple[str, landlock.Right]]:
    rules = [(path, landlock.READ if Path(path).is_dir() else landlock.Right.READ_FILE) for path in visible()]
    rules.append(("/dev/null", landlock.WRITE_DEVICE))
    # A directory that only the warden bounds, by looking, must not hold files that it cannot see.
    rules.append((work, landlock.FREE if isolation is Isolation.NAMESPACES else landlock.FLAT))
    return rules
