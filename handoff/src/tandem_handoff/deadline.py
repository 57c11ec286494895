# SPDX-License-Identifier: Apache-2.0
"""One deadline for a whole handoff, whatever the number of waits in it."""

import time

from tandem_handoff.errors import DeadlineExceededError


class Deadline:
    """A moment after which waiting is over.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def remaining(self, waiting_for: str) -> float:
        """Seconds left, above zero.

        Raises:
            DeadlineExceededError: nothing is left.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceededError(f"{waiting_for} took longer than the handoff's {self._seconds:g} s")
        return left
