# SPDX-License-Identifier: Apache-2.0
"""How a benchmark's times grow with its size."""

import math
import statistics
from collections.abc import Sequence


def power(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The power of the size with which the seconds grow, by least squares of their logarithms; 0 for a single size."""
    if len(set(sizes)) < 2:
        return 0.0
    return statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, seconds)]).slope
