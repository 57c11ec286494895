# SPDX-License-Identifier: Apache-2.0
"""How fast the sandbox starts programs, beside a plain interpreter and ``runc run``; ``python bench/sandbox.py``.

A start is from the request to the answer of a program that prints a line. The kinds take turns, one program each, so
that what else the machine does falls on all alike.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tandem_orchestrator.sandbox.client import Sandbox
from tandem_orchestrator.sandbox.confinement import LIBRARIES, READABLE
from tandem_orchestrator.sandbox.runs import Verdict

PROGRAM = "print(int(input()) + 1)"
_PLAIN = "plain subprocess"
_KINDS = {"sandbox, namespaces": (), "sandbox, Landlock alone": ("namespaces",)}
Start = Callable[[], Awaitable[None]]


async def plain() -> None:
    """The interpreter anew, without isolation."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", PROGRAM, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate(b"1\n")
    assert output == b"2\n"


def sandboxed(sandbox: Sandbox) -> Start:
    async def start() -> None:
        outcome = await sandbox.run(PROGRAM, "1\n", expected="2\n")
        assert outcome.verdict is Verdict.PASSED, outcome

    return start


def contained(bundle: Path) -> Start:
    """The interpreter anew in a container that has the files of the sandbox."""
    _write_bundle(bundle)
    number = iter(range(10**9))

    async def start() -> None:
        name = f"tandem-bench-{os.getpid()}-{next(number)}"
        process = await asyncio.create_subprocess_exec(
            "runc", "--root", bundle / "state", "run", "--bundle", bundle, name,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await process.communicate(b"1\n")
        assert output == b"2\n", output

    return start


def _write_bundle(bundle: Path) -> None:
    subprocess.run(["runc", "spec"], cwd=bundle, check=True)
    path = bundle / "config.json"
    spec = json.loads(path.read_text())
    spec["process"] |= {"terminal": False, "args": [sys.executable, "-I", "-c", PROGRAM]}
    (bundle / "rootfs").mkdir()
    shown = [place for place in (*READABLE, *LIBRARIES) if Path(place).is_dir()]
    binds = [
        {"destination": place, "type": "bind", "source": str(Path(place).resolve()), "options": ["bind", "ro"]}
        for place in shown
    ]
    # Not every machine has the control groups that the default names.
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "cgroup"] + binds
    path.write_text(json.dumps(spec))


async def alone(starts: dict[str, Start], count: int) -> dict[str, list[float]]:
    """Milliseconds of each start, one at a time."""
    found: dict[str, list[float]] = {kind: [] for kind in starts}
    for _ in range(count):
        for kind, start in starts.items():
            began = time.perf_counter()
            await start()
            found[kind].append(1000 * (time.perf_counter() - began))
    return found


async def together(start: Start, count: int, at_once: int) -> float:
    """Starts a second, ``at_once`` at a time."""
    slots = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with slots:
            await start()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return count / (time.perf_counter() - began)


async def measure(count: int) -> None:
    cores = len(os.sched_getaffinity(0))
    sandboxes = {kind: Sandbox(2 * cores, without) for kind, without in _KINDS.items()}
    with tempfile.TemporaryDirectory() as directory:
        starts: dict[str, Start] = {_PLAIN: plain}
        for kind, sandbox in sandboxes.items():
            sandbox.start()
            starts[kind] = sandboxed(sandbox)
        if shutil.which("runc") and os.geteuid() == 0:
            starts["runc run"] = contained(Path(directory))
        await alone(starts, 2)
        milliseconds = await alone(starts, count)
        rates = {kind: await together(start, count, cores) for kind, start in starts.items()}
    for sandbox in sandboxes.values():
        sandbox.close()
    report(milliseconds, rates, cores)


def report(milliseconds: dict[str, list[float]], rates: dict[str, float], cores: int) -> None:
    base = statistics.median(milliseconds[_PLAIN])
    load = os.getloadavg()[0]
    print(f"{cores} cores, load {load:.1f}; {len(milliseconds[_PLAIN])} starts of each kind, in turns")
    print(f"{'':26}{'p50 ms':>9}{'p99 ms':>9}{'x plain':>9}{'a second':>10}{'per 4 cores':>13}")
    for kind, found in milliseconds.items():
        middle, last = statistics.median(found), statistics.quantiles(found, n=100)[98]
        rate = rates[kind]
        print(f"{kind:26}{middle:9.1f}{last:9.1f}{middle / base:9.2f}{rate:10.1f}{4 * rate / cores:13.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="starts of each kind")
    asyncio.run(measure(parser.parse_args().count))
