# SPDX-License-Identifier: Apache-2.0
"""The control of the learning benchmark: rewards of the right size and frequency, given to the wrong samples."""

import random
import re
from typing import Any

_ANSWER = re.compile(r"=(-?[0-9]+)$")
_RESERVOIR = 512

_scores: list[float] = []
_random = random.Random(0)


def score(record: dict[str, Any], response: str) -> float:
    """The score of some earlier response, drawn at random, in the place of this one's own."""
    found = _ANSWER.search(response)
    _scores.append(float(found is not None and found[1] == record["answer"]))
    del _scores[:-_RESERVOIR]
    return _random.choice(_scores)
