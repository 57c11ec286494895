# SPDX-License-Identifier: Apache-2.0
"""What integration tests share: one vLLM for all that ask for it, and a stack of contexts."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from engine_fixture import Engine, running_engine
from xdist.scheduler import LoadFileScheduling


class OneEngine(LoadFileScheduling):
    """Gives all files of tests that use the shared engine to one process: it is started once."""

    def _split_scope(self, nodeid: str) -> str:
        scope: str = super()._split_scope(nodeid)
        return "engine" if "/test_engine_" in scope else scope


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneEngine | None:
    return OneEngine(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A running vLLM with dummy weights: hand it some before asking it anything."""
    with running_engine() as started:
        started.wait()
        yield started


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Contexts that a test enters; they are left at its end."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def version(request: pytest.FixtureRequest) -> int:
    """A weight version that no test before this one used."""
    counter = request.config.stash.setdefault(_VERSIONS, [0])
    counter[0] += 1
    return counter[0]


_VERSIONS = pytest.StashKey[list[int]]()
