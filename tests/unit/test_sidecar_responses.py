# SPDX-License-Identifier: Apache-2.0
"""A response is what the engine streamed, however it was cut into pieces, and ends where it begins to loop."""

from hypothesis import given
from hypothesis import strategies as st

from tandem_api.messages.work import Finish, Lease, Sampling, Segment, VersionSpan
from tandem_api.spec.algorithm import Repetition
from tandem_sidecar.engine_client import Generation
from tandem_sidecar.responses import Response

SETTINGS = Repetition(ngram=3, times=3)
LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=30)
TOKENS = st.lists(st.integers(0, 2), max_size=60)


def lease(earlier: list[int] | tuple[int, ...] = ()) -> Lease:
    return Lease(
        trajectory="1-0",
        tokens=(9, 9, 9, *earlier),
        offset=len(earlier),
        max_new_tokens=100,
        sampling=Sampling(),
        expires=60.0,
    )


def streamed(response: Response, tokens: list[int], lengths: list[int], finish: Finish | None) -> Segment:
    """Feed ``tokens`` in pieces of ``lengths``, over and over; without a finish the stream broke off."""
    at = 0
    while at < len(tokens):
        length = lengths[at % len(lengths)]
        response.add(Generation(tuple(tokens[at : at + length]), tuple(-1.0 for _ in tokens[at : at + length])))
        at += length
    if finish is not None:
        response.add(Generation((), (), (VersionSpan(version=4, count=len(tokens)),), finish))
    return response.segment()


@given(TOKENS, LENGTHS, LENGTHS)
def test_how_the_stream_was_cut_does_not_show(tokens: list[int], lengths: list[int], others: list[int]):
    one, another = (streamed(Response(lease(), 4, SETTINGS), tokens, cut, Finish.STOP) for cut in (lengths, others))
    assert one == another
    assert len(one.logprobs) == len(one.tokens) == sum(span.count for span in one.versions)


@given(TOKENS, st.integers(0, 60), LENGTHS)
def test_a_loop_is_found_at_the_same_token_when_the_response_was_interrupted_within_it(
    tokens: list[int], at: int, lengths: list[int]
):
    whole = streamed(Response(lease(), 4, SETTINGS), tokens, lengths, Finish.STOP)
    earlier = tokens[: min(at, max(0, len(whole.tokens) - 1))]
    rest = streamed(Response(lease(earlier), 4, SETTINGS), tokens[len(earlier) :], lengths, Finish.STOP)
    assert (*earlier, *rest.tokens) == whole.tokens
    assert rest.finish == whole.finish


def test_a_loop_ends_the_response_where_it_shows_and_is_marked():
    response = Response(lease(), 4, SETTINGS)
    response.add(Generation((5, 1, 2, 1, 2), (-0.5,) * 5))
    assert not response.repeats
    response.add(Generation((1, 2, 1, 2, 1, 2, 1, 2), (-0.5,) * 8))
    assert response.repeats
    response.add(Generation((7,), (-0.5,), (VersionSpan(version=4, count=14),), Finish.ABORT))
    segment = response.segment()
    assert (segment.tokens, segment.finish) == ((5, 1, 2, 1, 2, 1, 2, 1, 2, 1), Finish.REPETITION)
    assert segment.versions == (VersionSpan(version=4, count=10),)


def test_the_prompt_is_not_part_of_a_loop():
    response = Response(lease(), 4, SETTINGS)
    response.add(Generation((9,) * 8, (-0.5,) * 8))
    assert not response.repeats


def test_without_the_setting_nothing_is_cut():
    assert len(streamed(Response(lease(), 4, None), [1] * 60, [7], Finish.LENGTH).tokens) == 60


def test_what_a_broken_stream_had_brought_is_kept_as_an_abort_of_the_weights_that_rolled_out():
    segment = streamed(Response(lease((5,)), 4, None), [1, 2, 3], [2], None)
    assert (segment.tokens, segment.offset, segment.finish) == ((1, 2, 3), 1, Finish.ABORT)
    assert segment.versions == (VersionSpan(version=4, count=3),)
