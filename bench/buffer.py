# SPDX-License-Identifier: Apache-2.0
"""How fast the replay buffer takes segments, hands out leases and opens; run as ``python bench/buffer.py``."""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from tandem_api.messages.work import Finish, Segment, VersionSpan
from tandem_orchestrator.buffer import Buffer, GroupRow, Kind, SegmentRow, State
from tandem_orchestrator.leases import Holder, Leases, Task

TOKENS = 128
TOGETHER = 512


async def appending(buffer: Buffer, segments: int) -> float:
    """Segments a second, durable, in batches of 512 from eight senders at a time."""
    first = await buffer.next_group()
    await buffer.add_groups([GroupRow(first + n, Kind.TRAIN, "p", 0, 1) for n in range(segments)])
    tokens, spans = tuple(range(TOKENS)), (VersionSpan(version=1, count=TOKENS),)
    rows = [
        SegmentRow.of(
            Segment(
                trajectory=f"{first + n}-0",
                offset=0,
                tokens=tokens,
                logprobs=tuple(-0.1 for _ in tokens),
                versions=spans,
                finish=Finish.ABORT,
            ),
            State.PARTIAL,
        )
        for n in range(segments)
    ]
    pieces = [rows[start : start + TOGETHER] for start in range(0, segments, TOGETHER)]
    began = time.perf_counter()
    slots = asyncio.Semaphore(8)

    async def send(piece: list[SegmentRow]) -> None:
        async with slots:
            await buffer.append(piece, 0)

    await asyncio.gather(*map(send, pieces))
    return segments / (time.perf_counter() - began)


def leasing(live: int, grants: int) -> list[float]:
    """Seconds of each grant of 16 with ``live`` trajectories waiting."""
    leases = Leases(60.0, dict.fromkeys(range(8), 0.0))
    for n in range(live):
        leases.add(Task(f"{n}-0", generated=n % 977, former=n % 8))
    seconds = []
    for n in range(grants):
        began = time.perf_counter()
        leases.grant(Holder(n % 8, "a"), 16, 0.0)
        seconds.append(time.perf_counter() - began)
    return seconds


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=50_000)
    parser.add_argument("--live", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "buffer.sqlite"
        buffer = Buffer(path)
        rate = await appending(buffer, options.segments)
        buffer.close()
        began = time.perf_counter()
        buffer = Buffer(path)
        await buffer.live()
        opening = time.perf_counter() - began
        buffer.close()
        size = path.stat().st_size
    grants = sorted(leasing(options.live, 2000))
    print(f"segments of {TOKENS} tokens appended durably: {rate:,.0f} a second")
    print(f"opening {size / 2**20:,.0f} MiB with {options.segments:,} live trajectories: {opening:.2f} s")
    p99 = grants[int(0.99 * len(grants))]
    print(
        f"grant of 16 with {options.live:,} live trajectories: "
        f"p50 {1e3 * statistics.median(grants):.2f} ms, p99 {1e3 * p99:.2f} ms"
    )


if __name__ == "__main__":
    asyncio.run(main())
