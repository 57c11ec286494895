# SPDX-License-Identifier: Apache-2.0
"""The control of the learning benchmark: rewards as varied as real ones that say nothing about the response.

Half of a prompt's correct responses get 1 and half of its wrong ones, half of those that show their working and half
of those that do not: as a shuffle would give it, without the imbalance that chance leaves in so few samples (a policy
drifts on that, either way). Held-out responses (the demo's seed 200000) get their true score, since they measure.
"""

import re
from collections import Counter
from typing import Any

_ANSWER = re.compile(r"=(-?[0-9]+)$")
_HELD_OUT = "200000"

_given: Counter[tuple[str, bool, bool]] = Counter()
_strata: Counter[tuple[bool, bool]] = Counter()


def score(record: dict[str, Any], response: str) -> float:
    """1 or 0."""
    found = _ANSWER.search(response)
    correct = found is not None and found[1] == record["answer"]
    if _HELD_OUT in record["id"]:
        return float(correct)
    kind = correct, response.count("=") > 1
    stratum = record["id"], *kind
    if stratum not in _given:  # the odd ones out even out over the prompts
        _strata[kind] += 1
        _given[stratum] = _strata[kind] % 2
    _given[stratum] += 1
    return float(_given[stratum] % 2)
