# SPDX-License-Identifier: Apache-2.0
"""How fast the replay buffer takes segments, hands out leases and opens; run as ``python bench/buffer.py``."""

import argparse
import asyncio
import json
import os
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tandem_api.environment import Job
from tandem_api.messages.work import Finish, LeaseRequest, Segment, VersionSpan
from tandem_api.spec import RLJobSpec
from tandem_orchestrator.buffer import Buffer, GroupRow, Kind, SegmentRow, State
from tandem_orchestrator.buffer.schema import connect
from tandem_orchestrator.run import Run

TOKENS = 128
TOGETHER = 512
SENDERS = 8
ROUNDS = 3
SAMPLES = 8
MEMBERS = 8
GRANTED = 16
LONG = 4096
FILE = "buffer.sqlite"


def segments_of(groups: list[GroupRow]) -> list[SegmentRow]:
    """A first segment of each trajectory."""
    tokens, spans = tuple(range(TOKENS)), (VersionSpan(version=0, count=TOKENS),)
    logprobs = tuple(-0.1 for _ in tokens)
    return [
        SegmentRow.of(
            Segment(
                trajectory=f"{group.id}-{sample}",
                offset=0,
                tokens=tokens,
                logprobs=logprobs,
                versions=spans,
                finish=Finish.ABORT,
            ),
            State.PARTIAL,
        )
        for group in groups
        for sample in range(group.samples)
    ]


async def appending(directory: Path, segments: int) -> tuple[float, float]:
    """Segments a second, each durable when its batch of 512 returns, from eight senders; and processor seconds."""
    buffer = Buffer(directory / FILE)
    groups = [GroupRow(number, Kind.TRAIN, "p", 0, SAMPLES) for number in range(segments // SAMPLES)]
    await buffer.add_groups(groups)
    rows = segments_of(groups)
    slots = asyncio.Semaphore(SENDERS)

    async def send(piece: list[SegmentRow]) -> None:
        async with slots:
            await buffer.append(piece, 0)

    began, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(send(rows[start : start + TOGETHER]) for start in range(0, len(rows), TOGETHER)))
    taken = len(rows) / (time.perf_counter() - began), time.process_time() - used
    buffer.close()
    return taken


def job(directory: Path, live: int) -> Job:
    """A job whose iteration has ``live`` trajectories."""
    prompts = directory / "prompts.jsonl"
    with prompts.open("w") as file:
        for number in range(live // SAMPLES):
            file.write(json.dumps({"id": f"p{number}", "domain": "x", "prompt": f"{number}=", "answer": "1"}) + "\n")
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    spec = {
        "iterations": 1,
        "model": {"source": {"random": {"config": config, "tokenizer": {"characters": "0123456789="}}}},
        "data": {"prompts": [{"path": str(prompts)}]},
        "engine": {"maxModelLen": 8192},
        "rollout": {
            "promptsPerIteration": live // SAMPLES,
            "samplesPerPrompt": SAMPLES,
            "maxTokens": 4096,
            "tokenBudget": 1024,
        },
        "algorithm": {"mirrorDescent": {"tau": 0.1}},
        "rewards": [{"name": "exact", "exact": {}}],
    }
    return Job("default", "bench", "uid", RLJobSpec.model_validate(spec))


async def leasing(directory: Path, live: int, grants: int) -> list[float]:
    """Seconds of each request for 16 of ``live`` trajectories, all begun: their tokens are read from the disk."""
    run = Run(job(directory, live), directory)
    await run.prepare()
    await run.open_rollout(0, 0, range(MEMBERS))
    buffer = run._opened.buffer
    rows = segments_of((await buffer.live())[0])
    for start in range(0, len(rows), 16 * TOGETHER):
        await buffer.append(rows[start : start + 16 * TOGETHER], 0)
    await run.open_rollout(0, 0, range(MEMBERS))
    run.serve(1)
    seconds = []
    for number in range(grants):
        member = number % MEMBERS
        request = LeaseRequest(member=member, incarnation=str(member), epoch=1, capacity=GRANTED)
        began = time.perf_counter()
        grant = await run.lease(request)
        seconds.append(time.perf_counter() - began)
        assert len(grant.leases) == GRANTED
        assert all(lease.offset == TOKENS for lease in grant.leases)
    await run.stop()
    return sorted(seconds)


def filled(directory: Path, size: int) -> Path:
    """A buffer of ``size`` bytes: 32 batches that were trained, and an iteration in progress."""
    path = directory / FILE
    db = connect(path)
    # Only what is measured must be durable.
    db.execute("PRAGMA journal_mode = OFF")
    db.execute("PRAGMA synchronous = OFF")
    trajectories = size // (LONG * 8)
    per_group = SAMPLES * 33
    db.execute("BEGIN")
    db.executemany("INSERT INTO segments VALUES (?, ?, 0, ?, ?, ?, 'Abort')", _segments(trajectories))
    db.executemany(
        "INSERT INTO trajectories (id, group_id, sample, state, length, oldest, spent, spent_in) VALUES "
        "(?, ?, ?, ?, ?, 0, ?, 0)",
        (
            (f"{n // SAMPLES}-{n % SAMPLES}", n // SAMPLES, n % SAMPLES, "partial" if live else "batched", LONG, LONG)
            for n in range(trajectories)
            for live in [n // SAMPLES % 33 == 32]
        ),
    )
    db.executemany(
        "INSERT INTO groups VALUES (?, 'train', 'p', 0, ?, ?)",
        (
            (group, "open" if group % 33 == 32 else "batched", None if group % 33 == 32 else group % 33)
            for group in range(trajectories // SAMPLES)
        ),
    )
    db.execute("COMMIT")
    assert trajectories >= per_group
    db.close()
    _forget(path)
    return path


def _segments(count: int) -> Iterator[tuple[int, str, bytes, bytes, bytes]]:
    tokens, spans = bytes(4 * LONG), bytes(8)
    for number in range(count):
        yield number, f"{number // SAMPLES}-{number % SAMPLES}", tokens, tokens, spans


def _forget(path: Path) -> None:
    """Have nothing of the file in the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


async def opening(path: Path) -> tuple[float, int]:
    """Seconds until everything that a starting orchestrator needs of a buffer is read; live trajectories."""
    began = time.perf_counter()
    buffer = Buffer(path)
    _, trajectories = await buffer.live()
    await buffer.next_group()
    await buffer.attempts()
    await buffer.summaries()
    seconds = time.perf_counter() - began
    buffer.close()
    return seconds, len(trajectories)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=50_000)
    parser.add_argument("--live", type=int, default=100_000)
    parser.add_argument("--gib", type=float, default=10.0, help="size of the buffer that is opened")
    parser.add_argument("--directory", type=Path, help="where the buffers are made; absent: the temporary directory")
    options = parser.parse_args()
    print(f"SQLite {sqlite3.sqlite_version}, load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            rate, used = await appending(Path(directory), options.segments)
        each = 1e6 * used / options.segments
        print(f"segments of {TOKENS} tokens appended durably: {rate:,.0f} a second, {each:.0f} us of a core each")
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        seconds = await leasing(Path(directory), options.live, 2000)
    p50, p99 = 1e3 * statistics.median(seconds), 1e3 * seconds[int(0.99 * len(seconds))]
    print(f"{GRANTED} leases of {options.live:,} live trajectories: p50 {p50:.2f} ms, p99 {p99:.2f} ms", flush=True)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        size = int(min(options.gib * 2**30, 0.8 * shutil.disk_usage(directory).free))
        path = filled(Path(directory), size)
        took, live = await opening(path)
        print(f"opening {path.stat().st_size / 2**30:.1f} GiB with {live:,} live trajectories, cold: {took:.2f} s")


if __name__ == "__main__":
    asyncio.run(main())
