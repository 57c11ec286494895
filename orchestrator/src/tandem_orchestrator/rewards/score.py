# SPDX-License-Identifier: Apache-2.0
"""What a reward says of a response."""

from dataclasses import dataclass
from typing import Protocol

from tandem_api.errors import TandemError
from tandem_api.records import Record


@dataclass(frozen=True, slots=True)
class Score:
    """``value`` is the reward; ``correct`` what accuracy, success rates and the length penalty count."""

    value: float
    correct: bool


class Unscored(TandemError):
    """A response could not be scored. The sample is left out; ``reason`` is what such cases are counted by."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Scorer(Protocol):
    """One way to score. Called concurrently; never blocks the event loop."""

    async def score(self, record: Record, response: str) -> Score:
        """The verdict on ``response``.

        Raises:
            Unscored: there is none, and another try would not help.
        """
        ...

    async def close(self) -> None:
        """Let go of processes and connections."""
        ...
