# SPDX-License-Identifier: Apache-2.0
"""The work queue: no key twice at once, and one that always fails holds up nobody."""

import asyncio
import time

import pytest
from waiting import DEADLINE, reached

from tandem_operator.workqueue import FIRST_BACKOFF, LONGEST_BACKOFF, Key, WorkQueue

A, B = ("team", "a"), ("team", "b")


async def taken(queue: WorkQueue) -> Key:
    return await asyncio.wait_for(queue.take(), DEADLINE)


async def idle(queue: WorkQueue) -> bool:
    try:
        await asyncio.wait_for(queue.take(), 0.05)
    except TimeoutError:
        return True
    return False


async def test_a_key_added_often_is_due_once() -> None:
    queue = WorkQueue()
    for _ in range(3):
        queue.add(A)
    assert await taken(queue) == A
    queue.done(A)
    assert await idle(queue)


async def test_a_key_is_never_with_two_workers_and_news_meanwhile_is_not_lost() -> None:
    queue = WorkQueue()
    queue.add(A)
    assert await taken(queue) == A
    queue.add(A)
    assert await idle(queue)
    queue.done(A)
    assert await taken(queue) == A


async def test_keys_come_when_they_are_due() -> None:
    queue = WorkQueue()
    started = time.monotonic()
    queue.add(A, 0.2)
    queue.add(B)
    assert await taken(queue) == B
    assert await taken(queue) == A
    assert time.monotonic() - started >= 0.2


async def test_news_make_a_key_due_sooner_but_never_later() -> None:
    queue = WorkQueue()
    queue.add(A, 10 * DEADLINE)
    queue.add(A)
    queue.add(A, 10 * DEADLINE)
    assert await taken(queue) == A


async def test_a_waiting_worker_wakes_for_a_new_key() -> None:
    queue = WorkQueue()
    queue.add(B, 10 * DEADLINE)
    waiting = asyncio.create_task(taken(queue))
    await asyncio.sleep(0)
    queue.add(A)
    assert await waiting == A


async def test_failures_wait_longer_and_longer_up_to_a_limit() -> None:
    queue = WorkQueue()
    waits = [queue.failed(A) for _ in range(12)]
    assert waits[:3] == [FIRST_BACKOFF, 2 * FIRST_BACKOFF, 4 * FIRST_BACKOFF]
    assert waits[-1] == LONGEST_BACKOFF
    queue.done(A)
    assert queue.failed(A) == FIRST_BACKOFF


async def test_a_key_that_always_fails_does_not_hold_up_the_others() -> None:
    queue = WorkQueue()
    queue.add(A)
    assert await taken(queue) == A
    queue.failed(A)
    for number in range(100):
        queue.add(("team", f"job-{number}"))
    seen = {await taken(queue) for _ in range(100)}
    assert A not in seen
    assert len(seen) == 100


async def test_a_forgotten_key_does_not_come_back() -> None:
    queue = WorkQueue()
    queue.add(A)
    queue.forget(A)
    assert await idle(queue)
    assert len(queue) == 0


@pytest.mark.parametrize("workers", [1, 4])
async def test_every_key_is_worked_on_whatever_the_number_of_workers(workers: int) -> None:
    queue, seen = WorkQueue(), list[Key]()

    async def work() -> None:
        while True:
            key = await queue.take()
            await asyncio.sleep(0)
            seen.append(key)
            queue.done(key)

    tasks = [asyncio.create_task(work()) for _ in range(workers)]
    keys = [("team", str(number)) for number in range(200)]
    for key in keys:
        queue.add(key)
    await reached(lambda: len(seen) >= len(keys), DEADLINE, "the work on every key")
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert sorted(seen) == sorted(keys)
