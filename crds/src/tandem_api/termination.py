# SPDX-License-Identifier: Apache-2.0
"""How a program of a pod ends when Kubernetes asks it to."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any


async def until_terminated[T](work: Coroutine[Any, Any, T]) -> T | None:
    """What ``work`` returns; ``None`` if SIGTERM or SIGINT came first, and then it was cancelled and has ended."""
    terminated = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, terminated.set)
    working, ending = asyncio.create_task(work), asyncio.create_task(terminated.wait())
    await asyncio.wait([working, ending], return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if working.done():
        return working.result()
    working.cancel()
    await asyncio.wait([working])
    return None
