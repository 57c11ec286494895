# SPDX-License-Identifier: Apache-2.0
"""After a handoff both sides must score the probe the same, as far as precision allows."""

import pytest

from tandem_api.errors import MemberFailed
from tandem_api.spec.model import DType
from tandem_sidecar.probe import compare, mean_limit


@pytest.mark.parametrize("arguments", [["--quantization", "fp8"], ["--quantization=fp8_per_tensor"], ["-q", "fp8"]])
def test_an_engine_that_quantises_may_differ_more(arguments: list[str]) -> None:
    for dtype in DType:
        assert mean_limit(dtype, arguments) > mean_limit(dtype, ["--enforce-eager"])


def test_a_mean_difference_beyond_the_limit_fails_and_says_both() -> None:
    with pytest.raises(MemberFailed, match=r"by 0\.25 on average; expected at most 0\.1"):
        compare([-1.0, -2.0], [-1.0, -2.5], mean_limit(DType.BFLOAT16, []))


def test_the_largest_difference_is_reported() -> None:
    assert compare([-1.0, -2.0], [-1.0, -2.5], mean_limit(DType.BFLOAT16, ["-q", "fp8"])) == 0.5


def test_a_score_that_is_no_number_fails() -> None:
    with pytest.raises(MemberFailed):
        compare([-1.0], [float("nan")], 0.3)
