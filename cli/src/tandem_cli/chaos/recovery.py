# SPDX-License-Identifier: Apache-2.0
"""When a job works again after a fault, judged by the phases that follow."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tandem_api.errors import RunFailed
from tandem_api.messages.phases import PhaseName, PhaseRecord
from tandem_cli.chaos.place import Seen
from tandem_cli.chaos.plan import LASTING, Component, Fault, Kind


@dataclass(frozen=True, slots=True)
class Recovery:
    """What came of a fault. ``hit``: the phase that was current right after it; ``reason``: why the job recovered.

    ``seconds`` from ``at`` (Unix seconds) until the job worked again, None if it did not, and then ``reason`` says why.
    """

    fault: Fault
    hit: PhaseName
    at: float
    seconds: float | None
    new_world: bool
    reason: str | None

    def written(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "fault": self.fault.written()}


class Judge:
    """Sees a job after a fault, and says when it works again: in Unix seconds, None as long as it does not.

    A new world past its Recover works, whatever happened. Without one, by what was hit: a leader by the next that
    leads; etcd by the next phase, for which it is needed; a fault that lasts by a phase that began after it and came to
    its end; everything else, since a member's loss may show only when it is needed, by a Rollout that began after it
    and came to its end.
    """

    def __init__(self, fault: Fault, before: Seen) -> None:
        self.fault = fault
        self.reason: str | None = None
        self.new_world = False
        self._before = before
        self._over: tuple[int, float] | None = None
        self._candidate: PhaseRecord | None = None
        self._works = self._rule()

    def over(self, seen: Seen) -> None:
        """The fault has ended just now."""
        self._over = seen.record.epoch, time.time()

    def __call__(self, seen: Seen) -> float | None:
        """When it worked again.

        Raises:
            RunFailed: the job has failed, or did not notice what it must notice.
        """
        record = seen.record
        if record.name is PhaseName.FAILED:
            raise RunFailed(f"the job has failed: {record.reason or 'it does not say why'}")
        if record.world > self._before.record.world:
            self.new_world = True
            if record.name is PhaseName.RECOVER:
                self.reason = record.reason
                return None
            return record.started
        return record.started if record.name is PhaseName.SUCCEEDED else self._works(seen)

    def _rule(self) -> Callable[[Seen], float | None]:
        kind, component = self.fault.kind, self.fault.component
        if kind is Kind.CORRUPT_SEGMENT:
            return self._noticed
        if component is Component.ORCHESTRATOR and kind not in LASTING:
            return self._led_anew
        if component is Component.ETCD and kind is Kind.KILL:
            return self._moved
        if kind in LASTING and component is not Component.ENGINE:
            return self._settled
        return self._served

    def _noticed(self, seen: Seen) -> None:
        if seen.record.name is PhaseName.ROLLOUT and seen.record.epoch > self._before.record.epoch:
            raise RunFailed("the job took the corrupted weights into service without noticing")

    def _led_anew(self, seen: Seen) -> float | None:
        return time.time() if seen.leader not in (None, self._before.leader) else None

    def _moved(self, seen: Seen) -> float | None:
        # A phase that could not be written for so long says that it started when it was to.
        return time.time() if seen.record.epoch > self._before.record.epoch else None

    def _settled(self, seen: Seen) -> float | None:
        if self._over is None:
            return None
        epoch, ended = self._over
        works = self._ended(seen, lambda record: record.epoch > epoch)
        return None if works is None else max(works, ended)

    def _served(self, seen: Seen) -> float | None:
        before = self._before.record.epoch
        return self._ended(seen, lambda record: record.name is PhaseName.ROLLOUT and record.epoch > before)

    def _ended(self, seen: Seen, counts: Callable[[PhaseRecord], bool]) -> float | None:
        """When the phase began that counts and has come to its end."""
        record = seen.record
        if self._candidate is not None and record.epoch > self._candidate.epoch:
            return self._candidate.started
        if self._candidate is None and counts(record):
            self._candidate = record
        return None
