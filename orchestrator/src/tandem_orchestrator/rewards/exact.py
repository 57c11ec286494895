# SPDX-License-Identifier: Apache-2.0
"""Equality of text."""

import re
from collections import deque

from tandem_api.records import Record
from tandem_api.spec.rewards import ExactReward
from tandem_orchestrator.rewards.score import Score, Unscored


def final_answer(response: str, pattern: re.Pattern[str] | None) -> str | None:
    """The first group of the last match of ``pattern``; all of the response without one, ``None`` if none matches."""
    if pattern is None:
        return response.strip()
    last = next(iter(deque(pattern.finditer(response), maxlen=1)), None)
    if last is None:
        return None
    found: str | None = last[1] if pattern.groups else last[0]
    return found.strip() if found is not None else None


class ExactScorer:
    """1 if the response's answer is the record's, blanks around both aside."""

    def __init__(self, reward: ExactReward) -> None:
        self._pattern = re.compile(reward.pattern) if reward.pattern else None

    async def score(self, record: Record, response: str) -> Score:
        if record.answer is None:
            raise Unscored("the record has no answer", record.id)
        correct = final_answer(response, self._pattern) == str(record.answer).strip()
        return Score(float(correct), correct)

    async def close(self) -> None:
        """Nothing is held."""
