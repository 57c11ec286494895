# SPDX-License-Identifier: Apache-2.0
"""The slow end of what a benchmark measured."""

import math
from collections.abc import Sequence


def p99(ascending: Sequence[float]) -> float:
    """The 99th percentile, by nearest rank."""
    return ascending[math.ceil(0.99 * len(ascending)) - 1]
