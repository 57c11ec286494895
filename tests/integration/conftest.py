# SPDX-License-Identifier: Apache-2.0
"""One vLLM for all integration tests of a session."""

import contextlib

import pytest
from engine_fixture import Engine, running_engine

_STARTING = pytest.StashKey[tuple[contextlib.ExitStack, Engine]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Starts the engine before the first test, if any test wants it, so that it comes up while others run."""
    wanted = any("engine" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not session.config.option.collectonly and _STARTING not in session.config.stash:
        stack = contextlib.ExitStack()
        session.config.stash[_STARTING] = (stack, stack.enter_context(running_engine()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stops it, also if no test got as far as using it."""
    if _STARTING in session.config.stash:
        session.config.stash[_STARTING][0].close()


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> Engine:
    """A running vLLM with dummy weights: hand it some before asking it anything."""
    _, started = pytestconfig.stash[_STARTING]
    started.wait()
    return started
