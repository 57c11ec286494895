# SPDX-License-Identifier: Apache-2.0
"""How long something was going on, however many at a time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class BusyTime:
    """Adds up the seconds during which at least one of its blocks was running."""

    def __init__(self) -> None:
        self._running = 0
        self._since = 0.0
        self._before = 0.0

    @contextmanager
    def block(self) -> Iterator[None]:
        """The time in this block counts, once, whatever runs beside it."""
        if not self._running:
            self._since = time.monotonic()
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._before += time.monotonic() - self._since

    @property
    def seconds(self) -> float:
        """Up to now."""
        return self._before + (time.monotonic() - self._since if self._running else 0.0)
