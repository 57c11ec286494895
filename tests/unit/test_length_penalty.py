# SPDX-License-Identifier: Apache-2.0
"""The length reward on the edge cases of the paper's formula (section 2.3.3)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_orchestrator.length_penalty import length_rewards

samples = st.lists(st.tuples(st.integers(0, 32768), st.booleans()), min_size=1, max_size=16)


def test_responses_of_one_length_get_nothing():
    assert length_rewards([7, 7, 7], [True, False, True]) == [0.0, 0.0, 0.0]


def test_wrong_responses_are_never_rewarded_for_being_short():
    assert length_rewards([10, 20, 30], [False, False, False]) == [0.0, 0.0, -0.5]


def test_the_only_correct_response_gets_its_place_among_all_lengths():
    assert length_rewards([10, 20, 50], [False, True, False]) == [0.0, pytest.approx(0.25), -0.5]


def test_the_longest_correct_response_loses_half():
    assert length_rewards([10, 110], [True, True]) == [0.5, -0.5]


@given(samples)
def test_it_equals_the_formula(drawn: list[tuple[int, bool]]):
    lengths, correct = [length for length, _ in drawn], [right for _, right in drawn]
    shortest, longest = min(lengths), max(lengths)
    for length, right, found in zip(lengths, correct, length_rewards(lengths, correct), strict=True):
        if shortest == longest:
            assert found == 0.0
            continue
        share = 0.5 - (length - shortest) / (longest - shortest)
        assert found == (share if right else min(0.0, share))
