# SPDX-License-Identifier: Apache-2.0
"""A program ends with its work or at Kubernetes' request, whichever is first."""

import asyncio
import os
import signal

import pytest
from waiting import DEADLINE

from tandem_api.errors import Fenced
from tandem_api.termination import until_terminated


async def test_work_that_ends_gives_its_result() -> None:
    assert await until_terminated(asyncio.sleep(0, "done")) == "done"


async def test_an_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise Fenced("out of date")

    with pytest.raises(Fenced):
        await until_terminated(work())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_cancels_the_work_and_waits_for_its_end(number: signal.Signals) -> None:
    ended = []

    async def work() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    assert await asyncio.wait_for(until_terminated(work()), DEADLINE) is None
    assert ended == [True]
