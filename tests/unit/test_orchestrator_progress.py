# SPDX-License-Identifier: Apache-2.0
"""Progress is rounded where people read it."""

import pytest

from tandem_orchestrator.reporting import shown


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.7177734375, 0.7178),
        (0.704124927520752, 0.7041),
        (-1.25, -1.25),
        (0.0, 0.0),
        (12345.678, 12350.0),
        (None, None),
    ],
)
def test_figures_have_four_significant_digits(value: float | None, expected: float | None) -> None:
    assert shown(value) == expected
