# SPDX-License-Identifier: Apache-2.0
"""What a person is shown of a run."""

from collections import deque
from dataclasses import dataclass

from tandem_api.status import JobPhase

_RECENT = 10


@dataclass(frozen=True, slots=True)
class View:
    """A run at one moment. Rates are per second, ``seconds_left`` None until an iteration has been timed.

    ``phase_share`` is how much of the phase is done, 0 to 1, where that is known (Rollout). ``accuracy_before`` is the
    first held-out accuracy, before reinforcement learning.
    """

    phase: JobPhase
    iteration: int
    iterations: int
    stopping: bool = False
    phase_share: float | None = None
    reward: float | None = None
    accuracy: float | None = None
    accuracy_before: float | None = None
    tokens_per_second: float | None = None
    to_train_seconds: float = 0.0
    to_rollout_seconds: float = 0.0
    seconds: float = 0.0
    seconds_left: float | None = None
    restarts: int = 0

    @property
    def switch_seconds(self) -> float:
        return self.to_train_seconds + self.to_rollout_seconds


class Pace:
    """How long the iterations to come will take, judged by the last ten."""

    def __init__(self) -> None:
        self._ends: deque[tuple[float, int]] = deque(maxlen=_RECENT + 1)

    def left(self, iteration: int, iterations: int, now: float) -> float | None:
        """Seconds left at time ``now``; None until one iteration has been seen from start to end."""
        if not self._ends or iteration != self._ends[-1][1]:
            if self._ends and iteration < self._ends[-1][1]:
                self._ends.clear()
            self._ends.append((now, iteration))
        (first_time, first), (last_time, last) = self._ends[0], self._ends[-1]
        if last == first:
            return None
        seconds_each = (last_time - first_time) / (last - first)
        return max(0.0, seconds_each * (iterations - iteration) - (now - last_time))


def clock(seconds: float) -> str:
    """``75`` -> ``1:15``; ``3675`` -> ``1:01:15``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def rate(per_second: float | None) -> str:
    """Tokens per second with three significant digits at least."""
    return "–" if per_second is None else f"{per_second:,.0f} tokens/s"
