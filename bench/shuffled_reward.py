# SPDX-License-Identifier: Apache-2.0
"""The control of the learning benchmark: rewards as frequent as real ones, whatever the response.

A training sample's reward is drawn with the frequency of correct answers, as a shuffle of a batch would give it, and
independently of the sample. Held-out responses (the demo's seed 200000) get their true score, since they measure.
"""

import random
import re
from typing import Any

_ANSWER = re.compile(r"=(-?[0-9]+)$")
_HELD_OUT = "200000"
_FREQUENCY = 0.45

_random = random.Random(0)


def score(record: dict[str, Any], response: str) -> float:
    """1 or 0."""
    if _HELD_OUT not in record["id"]:
        return float(_random.random() < _FREQUENCY)
    found = _ANSWER.search(response)
    return float(found is not None and found[1] == record["answer"])
