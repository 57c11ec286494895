# SPDX-License-Identifier: Apache-2.0
"""What a member did in a phase, step by step, on its way into an ack."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tandem_api.messages.phases import Ack, Outcome, Step


@dataclass
class Part:
    """A member's part of one phase while it is being done: timed steps and what was measured.

    ``start`` in Unix seconds, ``began`` the same moment by the clock that does not jump.
    """

    start: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    steps: list[Step] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)
    digest: str | None = None
    checkpoint: str | None = None

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the block as a step; it is kept also when the block fails, so that a failure shows where."""
        start, clock = time.time(), time.monotonic()
        try:
            yield
        finally:
            self.steps.append(Step(name=name, start=start, seconds=time.monotonic() - clock))

    def ack(self, epoch: int, index: int, incarnation: str, error: str | None = None) -> Ack:
        """The ack that reports this part: done, or failed with ``error``."""
        return Ack(
            epoch=epoch,
            index=index,
            incarnation=incarnation,
            outcome=Outcome.FAILED if error else Outcome.DONE,
            start=self.start,
            seconds=time.monotonic() - self.began,
            steps=tuple(self.steps),
            measured=self.measured,
            digest=self.digest,
            checkpoint=self.checkpoint,
            error=error,
        )
