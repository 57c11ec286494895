# SPDX-License-Identifier: Apache-2.0
"""A process that is killed in the middle of writing leaves a whole buffer with everything that it acknowledged."""

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tandem_orchestrator.buffer import Buffer

ROUNDS = 30

WRITER = """
import asyncio, os, sys
from pathlib import Path
from tandem_api.messages.work import Finish, Segment, VersionSpan
from tandem_orchestrator.buffer import Buffer, GroupRow, Kind, SegmentRow, State

async def feed(buffer, group):
    await buffer.add_groups([GroupRow(group, Kind.TRAIN, f"p{group}", 0, 1)])
    length = 0
    while True:  # It has never done before it is killed, however late that is.
        tokens = tuple(range(length, length + 37))
        spans = (VersionSpan(version=group % 3, count=len(tokens)),)
        segment = Segment(trajectory=f"{group}-0", offset=length, tokens=tokens, logprobs=tuple(0.0 for _ in tokens),
                          versions=spans, finish=Finish.ABORT)
        await buffer.append([SegmentRow.of(segment, State.PARTIAL)], 0)
        length += len(tokens)
        os.write(1, f"{group} {length}\\n".encode())  # One write: a line is there whole or not at all.

async def main():
    buffer = Buffer(Path(sys.argv[1]))
    first = await buffer.next_group()
    print("begins", os.getpid(), flush=True)
    await asyncio.gather(*(feed(buffer, first + number) for number in range(8)))

# Loaded once; each line on standard input asks for another writer.
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        asyncio.run(main())
        os._exit(0)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


def test_killed_at_random_points_it_keeps_every_acknowledged_token_and_nothing_half(tmp_path: Path):
    path = tmp_path / "buffer.sqlite"
    generator = random.Random(11)
    acknowledged: dict[str, int] = {}
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writers:
        for _ in range(ROUNDS):
            for group, length in killed_after(writers, lines=generator.randint(1, 400)):
                acknowledged[f"{group}-0"] = length
            stored = lengths(path)
            assert all(stored[name] >= length for name, length in acknowledged.items())
    assert len(acknowledged) > ROUNDS


def killed_after(writers: subprocess.Popen[str], lines: int) -> Iterator[tuple[int, int]]:
    """What a writer acknowledged before it was killed, at the earliest after so many lines."""
    assert writers.stdin is not None
    assert writers.stdout is not None
    print("go", file=writers.stdin, flush=True)
    pid = int(writers.stdout.readline().split()[1])
    for number, line in enumerate(writers.stdout):
        if line == "ended\n":
            return
        group, length = line.split()
        yield int(group), int(length)
        if number == lines:
            os.kill(pid, signal.SIGKILL)


def lengths(path: Path) -> dict[str, int]:
    """Stored tokens of each trajectory, once the buffer has been found whole."""

    async def read() -> dict[str, int]:
        buffer = Buffer(path)
        _, trajectories = await buffer.live()
        generated = await buffer.generated(trajectory.id for trajectory in trajectories)
        buffer.close()
        for trajectory in trajectories:
            made = generated[trajectory.id]
            assert made.tokens.tolist() == list(range(trajectory.length))
            assert len(made.logprobs) == len(made.versions) == trajectory.length
        return {trajectory.id: trajectory.length for trajectory in trajectories}

    found = asyncio.run(read())
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    return found
