# SPDX-License-Identifier: Apache-2.0
"""What vLLM's server leaves behind when it ends before its core and its workers, which hold the device."""

import asyncio
import ctypes
import os
import signal
import time

import structlog

log = structlog.get_logger()

_PR_SET_CHILD_SUBREAPER = 36
_POLL = 0.05


def adopt_orphans() -> None:
    """Be the parent of all descendants whose own has ended, as process 1 of a container is anyway.

    Only their parent can wait for them, and until it has they stay as zombies.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        log.debug("the process group was gone already", group=group)


async def end_group(group: int, seconds: float) -> bool:
    """Kill what is left of a process group and wait for it; whether all of it has ended within ``seconds``.

    Nobody else may wait for a process of this group.
    """
    signal_group(group, signal.SIGKILL)
    end = time.monotonic() + seconds
    while _some_live(group):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(_POLL)
    return True


def _some_live(group: int) -> bool:
    try:
        while os.waitpid(-group, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return False
    return True
