# SPDX-License-Identifier: Apache-2.0
"""Standard metav1 conditions: a condition's time moves only when its status does."""

from dataclasses import dataclass
from typing import Literal

from tandem_api.status import Condition, ConditionType
from tandem_operator.times import rfc3339

Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is thought of one condition now."""

    type: ConditionType
    status: Truth
    reason: str
    message: str = ""


def updated(
    previous: tuple[Condition, ...], judgements: tuple[Judgement, ...], generation: int, now: float
) -> tuple[Condition, ...]:
    """The judgements as conditions; what is not judged now is no condition any more."""
    known = {condition.type: condition for condition in previous}

    def condition(judgement: Judgement) -> Condition:
        before = known.get(judgement.type)
        unchanged = before is not None and before.status == judgement.status
        return Condition(
            type=judgement.type,
            status=judgement.status,
            observed_generation=generation,
            last_transition_time=before.last_transition_time if before and unchanged else rfc3339(now),
            reason=judgement.reason,
            message=judgement.message,
        )

    return tuple(map(condition, judgements))
