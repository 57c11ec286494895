# SPDX-License-Identifier: Apache-2.0
"""One vLLM for all integration tests that ask for it."""

from collections.abc import Iterator

import pytest
from engine_fixture import Engine, running_engine


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A running vLLM with dummy weights: hand it some before asking it anything."""
    with running_engine() as started:
        started.wait()
        yield started
