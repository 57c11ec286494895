# SPDX-License-Identifier: Apache-2.0
"""The content checks see what they promise to see."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem_handoff.checksums import checksum, checksum_and_finite, condensed, copy_with_checksum, is_finite

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2, torch.float8_e4m3fn]
ROW = 8192


def on_gpu(tensor: torch.Tensor) -> bytes:
    """What a GPU's checksum is taken of, which a CPU can compute as well."""
    content = condensed(tensor.contiguous().reshape(-1).view(torch.uint8))
    return content.numpy().tobytes()


KINDS = pytest.mark.parametrize("kind", [checksum, on_gpu])
Kind = Callable[[torch.Tensor], object]


@KINDS
@settings(deadline=None)
@given(content=st.binary(min_size=1, max_size=200), data=st.data())
def test_any_flipped_bit_changes_the_checksum(kind: Kind, content: bytes, data: st.DataObject) -> None:
    tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    before = kind(tensor)
    assert kind(tensor.clone()) == before
    tensor[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert kind(tensor) != before


@KINDS
@settings(deadline=None, max_examples=40)
@given(data=st.data(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_any_two_values_that_swap_places_change_the_checksum(
    kind: Kind, data: st.DataObject, dtype: torch.dtype
) -> None:
    tensor = torch.arange(3 * ROW + 5, dtype=torch.float64).to(dtype) + 1
    places = st.lists(st.integers(0, tensor.numel() - 1), min_size=2, max_size=2, unique_by=lambda n: tensor[n].item())
    first, second = data.draw(places)
    swapped = tensor.clone()
    swapped[first], swapped[second] = tensor[second], tensor[first]
    assert kind(swapped) != kind(tensor)


@KINDS
@settings(deadline=None, max_examples=40)
@given(start=st.integers(0, 4 * ROW - 1), length=st.integers(1, 3 * ROW), seed=st.integers(0, 9))
def test_a_stale_range_changes_the_checksum(kind: Kind, start: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    fresh, stale = (torch.randn(4 * ROW, dtype=torch.float64, generator=generator) for _ in range(2))
    torn = fresh.clone()
    torn[start : start + length] = stale[start : start + length]
    assert kind(torn) != kind(fresh)


@KINDS
@pytest.mark.parametrize("distance", [1, 7, ROW, 2 * ROW])
def test_content_that_moved_changes_the_checksum(kind: Kind, distance: int) -> None:
    tensor = torch.randn(4 * ROW, dtype=torch.float64, generator=torch.Generator().manual_seed(distance))
    assert kind(tensor.roll(distance)) != kind(tensor)


@KINDS
def test_places_far_apart_are_told_apart(kind: Kind) -> None:
    tensor = torch.zeros(5 * ROW + 3, dtype=torch.int64)
    seen = set()
    for place in [0, 1, ROW - 1, ROW, ROW + 1, 2 * ROW, 3 * ROW + 3, tensor.numel() - 1]:
        tensor.zero_()
        tensor[place] = -(2**63)  # the bit that a sum's carry loses first
        seen.add(kind(tensor))
    assert len(seen) == 8


def test_a_view_at_an_odd_address_has_the_checksum_of_its_copy() -> None:
    view = torch.arange(101, dtype=torch.bfloat16)[1:]
    assert checksum(view) == checksum(view.clone())
    assert on_gpu(view) == on_gpu(view.clone())


@pytest.mark.parametrize("length", [0, 3, 1_000_003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_a_copy_and_a_check_in_pieces_have_the_checksum_of_the_whole(length: int, dtype: torch.dtype) -> None:
    source = torch.randint(-100, 100, (2, length)).to(dtype).t()
    target = torch.empty(source.shape, dtype=dtype)
    assert copy_with_checksum(source, target) == checksum(source)
    assert torch.equal(target, source)
    assert checksum_and_finite(target) == (checksum(source), True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 17, 299_999])
def test_one_value_that_is_not_finite_is_found(dtype: torch.dtype, value: float, place: int) -> None:
    tensor = torch.linspace(-3, 3, 300_000)
    assert is_finite(tensor.to(dtype))
    tensor[place] = value if dtype is not torch.float8_e4m3fn else torch.nan  # which has no infinity
    assert not is_finite(tensor.to(dtype))
    assert not checksum_and_finite(tensor.to(dtype))[1]


@pytest.mark.parametrize("dtype", FLOATS[:4])
def test_large_values_are_finite_though_their_sum_is_not(dtype: torch.dtype) -> None:
    largest = torch.full((10,), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(largest)


def test_opposite_infinities_do_not_cancel() -> None:
    assert not is_finite(torch.tensor([float("inf"), -float("inf")]))


def test_integers_are_finite() -> None:
    assert is_finite(torch.tensor([1, 2]))
