# SPDX-License-Identifier: Apache-2.0
"""Which promises the sandbox keeps on this machine, found out by breaking them."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from tandem_orchestrator.sandbox.client import Sandbox
from tandem_orchestrator.sandbox.runs import MIB, Limits, Outcome, Verdict

log = structlog.get_logger()

_LIMITS = Limits(seconds=5.0, memory=64 * MIB, output=MIB, disk=MIB, entries=32, descriptors=32, tasks=8)
_SLEEP_SECONDS = 0.2
_AT_ONCE = 4
_CANARY = "canary"


@dataclass(frozen=True, slots=True)
class Guarantee:
    """One promise; ``needed`` is whether the sandbox must not be used without it."""

    name: str
    promise: str
    held: bool
    needed: bool
    found: str


@dataclass(frozen=True, slots=True)
class Guarantees:
    """What holds here. ``means`` is what it is done with: isolation, Landlock's ABI, whether the kernel asks."""

    means: dict[str, Any]
    each: tuple[Guarantee, ...]

    @property
    def held(self) -> list[str]:
        return [each.name for each in self.each if each.held]

    @property
    def lacking(self) -> list[str]:
        return [each.name for each in self.each if not each.held]

    @property
    def fatal(self) -> list[Guarantee]:
        """Needed, and not held."""
        return [each for each in self.each if each.needed and not each.held]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A program that ends well only if the promise is broken; the fields in braces are filled in."""

    name: str
    promise: str
    program: str
    needed: bool = True
    held: Callable[[Outcome], bool] = lambda outcome: outcome.verdict is not Verdict.PASSED

    def source(self, canary: Path) -> str:
        """The program; ``canary`` is a file that it must not read, beside which it must not write."""
        return self.program.replace("{canary!r}", repr(str(canary))).replace("{pid}", str(os.getpid()))


ATTEMPTS = (
    Attempt("network", "no sockets but pairs of its own", "import socket; socket.socket()"),
    Attempt("files", "reads nothing but libraries", "print(open({canary!r}).read())"),
    Attempt("writes", "writes nowhere but in its own directory", "open({canary!r} + '2', 'w').write('x')"),
    Attempt("processes", "sees no process but its own", "print(open('/proc/{pid}/environ').read())"),
    Attempt("signals", "signals no process but its own", "import os; os.kill({pid}, 0)"),
    Attempt("tracing", "looks into no process", "import ctypes; assert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0"),
    Attempt("namespaces", "makes no namespaces", "import os; os.unshare(os.CLONE_NEWUSER)"),
    Attempt("programs", "starts no other program", "import os; os.execv('/bin/true', ['true'])"),
    Attempt(
        "privileges",
        "has no capability and gets none",
        "import ctypes; libc = ctypes.CDLL(None); n = libc.prctl(39, 0, 0, 0, 0); assert n != 1\n"
        "header = ctypes.create_string_buffer((0x20080522).to_bytes(4, 'little') + bytes(4), 8)\n"
        "sets = ctypes.create_string_buffer(24); libc.capget(header, sets); assert any(sets.raw)",
    ),
    Attempt(
        "descriptors",
        "inherits nothing open",
        "import os\ndef there(n):\n  try: return bool(os.fstat(n))\n  except OSError: return False\n"
        "assert any(map(there, range(3, 999)))",
    ),
    Attempt("environment", "inherits no variables", "import os; assert os.environ"),
    Attempt("memory", "memory is bounded", f"len(bytes({4 * _LIMITS.memory}))"),
    Attempt("disk", "what it writes is bounded", "for n in range(99): open(str(n), 'wb').write(bytes(100_000))"),
    Attempt(
        "tasks",
        "threads and processes are bounded",
        "from threading import Thread, Event, stack_size\nstack_size(1 << 16)\n"
        "for _ in range(99): Thread(target=Event().wait, daemon=True).start()",
        needed=False,
    ),
    Attempt("forks", "processes are bounded", "import os, signal\nfor n in range(99): os.fork() or signal.pause()"),
    Attempt("output", "output is bounded", f"print('x' * {4 * _LIMITS.output})"),
    Attempt(
        "deadline",
        "time is bounded",
        "import time; time.sleep(60)",
        held=lambda outcome: outcome.verdict is Verdict.TIMEOUT,
    ),
)


def find_out(without: Collection[str] = ()) -> Guarantees:
    """Try everything, in about a second. May be called where an event loop runs; it blocks.

    Raises:
        SandboxError: the sandbox does not even start.
    """
    with ThreadPoolExecutor(1) as pool, Sandbox(_AT_ONCE, without) as sandbox:
        each = pool.submit(asyncio.run, _try_all(sandbox)).result()
        found = Guarantees(dict(sandbox.described), tuple(each))
    log.info("sandbox has been tried", **found.means, held=found.held, lacking=found.lacking)
    return found


async def _try_all(sandbox: Sandbox) -> list[Guarantee]:
    with tempfile.TemporaryDirectory(prefix="tandem-sandbox-") as directory:
        canary = Path(directory) / _CANARY
        canary.write_text("secret")
        tried = await asyncio.gather(*(_tried(sandbox, attempt, canary) for attempt in ATTEMPTS))
    return [*tried, await _leaves_nothing(sandbox)]


async def _tried(sandbox: Sandbox, attempt: Attempt, canary: Path) -> Guarantee:
    limits = _LIMITS if attempt.name != "deadline" else Limits(seconds=_SLEEP_SECONDS)
    outcome = await sandbox.run(attempt.source(canary), limits=limits)
    found = f"{outcome.verdict}: {outcome.rule}" if outcome.rule else str(outcome.verdict)
    return Guarantee(attempt.name, attempt.promise, attempt.held(outcome), attempt.needed, found)


async def _leaves_nothing(sandbox: Sandbox) -> Guarantee:
    """A daemon that leaves its session, or at least tries."""
    program = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    os.fork()\n    time.sleep(60)\n"
    await sandbox.run(program, limits=_LIMITS)
    left = await asyncio.to_thread(sandbox.left_behind)
    return Guarantee("leftovers", "nothing outlives its run", not left, needed=True, found=", ".join(left) or "nothing")
