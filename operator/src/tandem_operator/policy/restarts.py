# SPDX-License-Identifier: Apache-2.0
"""The restart budget. It lives in status, so it survives the operator.

A new world of the phase record is a new start of all members. Each is booked once: as a disruption if something
outside the job took a pod away, a queue took all of them, or a suspension ended, as a restart otherwise. A container
that fails before the job ever gets that far counts by its own restarts.
"""

from dataclasses import dataclass

from tandem_api.labels import HYBRID
from tandem_api.messages.phases import PhaseName
from tandem_api.status import ConditionType, RLJobStatus
from tandem_operator.observed import Observed

FIRST_WORLD = 1
RESUMED = "resumed"
DISRUPTED = "Disrupted"
"""Reason of condition Ready from the loss of a pod until it is booked or all are ready again."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """New starts so far. Neither number ever shrinks."""

    restarts: int
    disruptions: int


def count(status: RLJobStatus, observed: Observed) -> Ledger:
    """The ledger of ``status``, with what happened since."""
    restarts, disruptions = status.restarts, status.disruptions
    unbooked = observed.phase.world - FIRST_WORLD - restarts - disruptions if observed.phase else 0
    if unbooked > 0:
        if _excused(status, observed):
            disruptions += unbooked
        else:
            restarts += unbooked
    crashes = max((container.restarts for pod in observed.pods for container in pod.containers), default=0)
    return Ledger(max(restarts, crashes), disruptions)


def _excused(status: RLJobStatus, observed: Observed) -> bool:
    record = observed.phase
    resumed = record is not None and record.name is PhaseName.START and record.reason == RESUMED
    taken_back = any(work.component == HYBRID and work.suspended for work in observed.workloads)
    return resumed or taken_back or disrupted(status, observed)


def disrupted(status: RLJobStatus, observed: Observed) -> bool:
    """Whether a pod was taken away from outside, as observed now or as an operator before this one wrote it down."""
    noted = any(found.type is ConditionType.READY and found.reason == DISRUPTED for found in status.conditions)
    return noted or observed.disruption is not None or any(pod.disruption for pod in observed.pods)
