# SPDX-License-Identifier: Apache-2.0
"""Segments on their way to the disk when something else happens: nothing is lost, and nobody waits for ever."""

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from orchestrator_world import Engine, right_answer, running, segment, serving, tensors_of
from waiting import DEADLINE

from tandem_api.messages.work import Finish
from tandem_orchestrator.run import Run


@contextmanager
def locked_buffer(directory: Path) -> Iterator[None]:
    """Another process is in a transaction: what was begun waits for it, some seconds."""
    with closing(sqlite3.connect(directory / "state" / "buffer.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def busy_disk(run: Run) -> Iterator[None]:
    """The thread that writes has something else to do, however long."""
    free = threading.Event()
    run._opened.buffer._writer.submit(lambda _: free.wait())
    try:
        yield
    finally:
        free.set()


async def test_what_another_orchestrator_on_the_volume_stored_is_neither_leased_for_ever_nor_lost(tmp_path: Path):
    async with running(tmp_path) as before:
        engine = await serving(before)
        first, second, *rest = await engine.lease()
        async with running(tmp_path) as after:
            await after.open_rollout(0, 0, (0,))
            after.serve(2)
            cut = segment(second, right_answer(second)[:2], Finish.ABORT)
            await engine.store(engine.respond(first, 0), cut, *(engine.respond(lease, 0) for lease in rest))
            other = Engine(after, 2)
            async with asyncio.timeout(DEADLINE):
                await other.exhaust(0)
                await after.rollout_full()
            summary = await after.close_rollout()
            tensors = await tensors_of(after, 0)
    assert summary is not None
    assert (summary.samples, summary.accuracy_mean) == (8, 1.0)
    assert tensors["lossMask"].sum() == summary.tokens


async def test_a_request_that_breaks_off_while_it_is_stored_costs_nothing(tmp_path: Path):
    async with running(tmp_path) as run:
        engine = await serving(run)
        leases = await engine.lease()
        with locked_buffer(tmp_path):
            storing = asyncio.create_task(engine.store(*(engine.respond(lease, 0) for lease in leases)))
            await asyncio.wait([storing], timeout=0.2)
            storing.cancel()
            await asyncio.wait([storing])
        async with asyncio.timeout(DEADLINE):
            await Engine(run, 1).exhaust(0)
            await run.rollout_full()


async def test_a_rollout_ends_only_when_what_is_being_stored_is(tmp_path: Path):
    async with running(tmp_path) as run:
        engine = await serving(run)
        leases = await engine.lease()
        with busy_disk(run):
            storing = asyncio.create_task(engine.store(*(engine.respond(lease, 0) for lease in leases[1:])))
            await asyncio.sleep(0)
            opening = asyncio.create_task(run.open_rollout(0, 0, (0,)))
            done, _ = await asyncio.wait([storing, opening], timeout=0.2)
            assert not done
        await asyncio.gather(storing, opening)
        run.serve(2)
        assert [lease.trajectory for lease in await Engine(run, 2).lease()] == [leases[0].trajectory]
