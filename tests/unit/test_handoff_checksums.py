# SPDX-License-Identifier: Apache-2.0
"""The content checks see what they promise to see."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem_handoff.checksums import checksum, is_finite

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2, torch.float8_e4m3fn]


@settings(deadline=None)
@given(content=st.binary(min_size=1, max_size=200), data=st.data())
def test_any_flipped_bit_changes_the_checksum(content: bytes, data: st.DataObject) -> None:
    tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    before = checksum(tensor)
    assert checksum(tensor.clone()) == before
    tensor[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert checksum(tensor) != before


@settings(deadline=None)
@given(length=st.integers(2, 40), data=st.data())
def test_any_two_values_that_swap_places_change_the_checksum(length: int, data: st.DataObject) -> None:
    tensor = torch.arange(length, dtype=data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16])))
    first, second = data.draw(st.lists(st.integers(0, length - 1), min_size=2, max_size=2, unique=True))
    swapped = tensor.clone()
    swapped[first], swapped[second] = tensor[second], tensor[first]
    assert checksum(swapped) != checksum(tensor)


def test_places_far_apart_are_told_apart() -> None:
    tensor = torch.zeros(5 * 2**16 + 3, dtype=torch.int64)
    seen = set()
    for place in [0, 1, 2**16 - 1, 2**16, 2**16 + 1, 2 * 2**16, 3 * 2**16 + 3, tensor.numel() - 1]:
        tensor.zero_()
        tensor[place] = 1
        seen.add(checksum(tensor))
    assert len(seen) == 8


def test_a_view_at_an_odd_address_has_the_checksum_of_its_copy() -> None:
    view = torch.arange(101, dtype=torch.bfloat16)[1:]
    assert checksum(view) == checksum(view.clone())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 17, 99])
def test_one_value_that_is_not_finite_is_found(dtype: torch.dtype, value: float, place: int) -> None:
    tensor = torch.linspace(-3, 3, 100)
    assert is_finite(tensor.to(dtype))
    tensor[place] = value if dtype is not torch.float8_e4m3fn else torch.nan  # which has no infinity
    assert not is_finite(tensor.to(dtype))


@pytest.mark.parametrize("dtype", FLOATS[:4])
def test_large_values_are_finite_though_their_sum_is_not(dtype: torch.dtype) -> None:
    largest = torch.full((10,), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(largest)


def test_opposite_infinities_do_not_cancel() -> None:
    assert not is_finite(torch.tensor([float("inf"), -float("inf")]))


def test_integers_are_finite() -> None:
    assert is_finite(torch.tensor([1, 2]))
