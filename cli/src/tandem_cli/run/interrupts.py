# SPDX-License-Identifier: Apache-2.0
"""SIGINT, SIGTERM and SIGHUP: the first asks to save and stop, the second insists on stopping at once."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """What the user has asked for by signals so far."""

    def __init__(self) -> None:
        self._asking = asyncio.Event()
        self.insistence = asyncio.Event()
        self._listener: Callable[[], None] = lambda: None

    @property
    def asked(self) -> bool:
        """Whether the run is to be saved and stopped."""
        return self._asking.is_set()

    @property
    def insisted(self) -> bool:
        """Whether everything is to stop at once."""
        return self.insistence.is_set()

    def ask(self) -> None:
        """From now on any signal insists: the run is ending already."""
        self._asking.set()

    @contextmanager
    def heard(self, listener: Callable[[], None]) -> Iterator[None]:
        """Take signals, and call ``listener`` at each, while the context lasts."""
        loop = asyncio.get_running_loop()
        self._listener = listener
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._hear)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _hear(self) -> None:
        (self.insistence if self.asked else self._asking).set()
        self._listener()
