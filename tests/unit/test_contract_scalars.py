# SPDX-License-Identifier: Apache-2.0
"""Durations and quantities as Kubernetes writes them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_api.messages.phases import PhaseName, PhaseRecord
from tandem_api.scalars import (
    DURATION_PATTERN,
    MAX_INDICES,
    QUANTITY_PATTERN,
    bytes_of,
    duration_of,
    indices_of,
    indices_text,
    quantity_of,
    seconds_of,
    some_bytes_of,
)


@given(st.integers(1, 10**9) | st.floats(1e-3, 1e6).map(lambda seconds: round(seconds, 3)))
def test_a_duration_survives_being_written_and_read(seconds: float) -> None:
    text = duration_of(seconds)

    assert re.fullmatch(DURATION_PATTERN, text)
    assert seconds_of(text) == pytest.approx(seconds, rel=1e-12)


@given(st.integers(0, 999), st.integers(0, 59), st.integers(1, 59))
def test_the_parts_of_a_duration_add_up(hours: int, minutes: int, seconds: int) -> None:
    assert seconds_of(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("1h30m", 5400), ("90s", 90), ("1.5m", 90), ("250ms", 0.25), ("1m30s500ms", 90.5)]
)
def test_a_duration_is_what_it_says(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(("seconds", "text"), [(5400.0, "1h30m"), (90.0, "1m30s"), (0.25, "0.25s"), (86400.0, "24h")])
def test_a_duration_is_written_for_people(seconds: float, text: str) -> None:
    assert duration_of(seconds) == text


@pytest.mark.parametrize("value", ["", "90", "2d", "-1s", "1h 30m", "0s", "0h0m", 90, 1.5, None, True, "1s" * 20])
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        seconds_of(value)


@given(st.integers(0, 2**62))
def test_a_quantity_survives_being_written_and_read(number: int) -> None:
    text = quantity_of(number)

    assert re.fullmatch(QUANTITY_PATTERN, text)
    assert bytes_of(text) == number


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (512, 512),
        ("512", 512),
        ("4Gi", 2**32),
        ("1.5Ki", 1536),
        ("1k", 1000),
        ("0.3", 1),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_a_quantity_is_what_it_says(value: object, number: int) -> None:
    assert bytes_of(value) == number


@pytest.mark.parametrize("value", ["", "4GB", "Gi", "-1", -1, 1.5, None, True, "1e3", "1 Gi", 2**63, "1" * 33])
def test_what_is_no_quantity_of_bytes_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be a quantity"):
        bytes_of(value)


@pytest.mark.parametrize("value", [0, "0", "0Gi"])
def test_a_quantity_may_be_required_to_be_more_than_nothing(value: object) -> None:
    assert bytes_of(value) == 0
    with pytest.raises(ValueError, match="more than 0"):
        some_bytes_of(value)


@given(st.sets(st.integers(0, 300) | st.integers(0, MAX_INDICES - 1)))
def test_indices_survive_being_written_and_read(indices: set[int]) -> None:
    assert indices_of(indices_text(indices)) == tuple(sorted(indices))


@pytest.mark.parametrize(
    ("indices", "text"), [((), ""), ((0,), "0"), (range(1024), "0-1023"), ((0, 1, 2, 5, 7, 8), "0-2,5,7-8")]
)
def test_indices_in_a_row_are_written_as_a_range(indices: tuple[int, ...], text: str) -> None:
    assert indices_text(indices) == text


@pytest.mark.parametrize(
    "text", [",", "0,", "-1", "1-", "a", "5-2", "2,1", "0-2,2", "1,1", " 1", "٣", f"{MAX_INDICES}", "0-9999999"]
)
def test_what_are_no_indices_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="ascending indices"):
        indices_of(text)


def test_a_phase_record_is_as_short_for_a_thousand_members_as_for_one() -> None:
    one, thousand = (
        PhaseRecord(epoch=1, iteration=0, name=PhaseName.TRAIN, weight_version=0, world=1, members=members, started=0.0)
        for members in ((0,), tuple(range(1000)))
    )

    assert len(thousand.wire()) <= len(one.wire()) + len("-999")
    assert PhaseRecord.model_validate_json(thousand.wire()) == thousand
