# SPDX-License-Identifier: Apache-2.0
"""Responses that repeat themselves are noticed, and others are not."""

import random
import time
from statistics import median

from hypothesis import given
from hypothesis import strategies as st

from tandem_api.repetition import RepetitionDetector


def repeats(tokens: list[int], ngram: int, times: int) -> bool:
    """The definition: the last ngram * times tokens have a period of at most ngram."""
    tail = tokens[-ngram * times :]
    if len(tail) < ngram * times:
        return False
    return any(tail[period:] == tail[:-period] for period in range(1, ngram + 1))


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 4), st.integers(2, 4))
def test_it_says_what_the_definition_says_at_every_token(tokens: list[int], ngram: int, times: int):
    detector = RepetitionDetector(ngram, times)
    found = [detector.push(token) for token in tokens]
    assert found == [repeats(tokens[: end + 1], ngram, times) for end in range(len(tokens))]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=64), st.lists(st.integers(0, 50), max_size=100))
def test_a_loop_is_noticed_once_it_has_filled_the_tokens_asked_for(piece: list[int], before: list[int]):
    detector = RepetitionDetector(ngram=64, times=8)
    found = detector.first(before + piece * 600)
    assert found is not None
    assert 512 <= found <= len(before) + 512


def test_prose_code_and_tables_are_no_loops():
    numbers = "".join(f"| {n:4d} | {n * n:8d} | {n % 7} |\n" for n in range(600))
    code = "".join(f"    if value == {n}:\n        return table[{n}]\n" for n in range(300))
    generator = random.Random(1)
    prose = " ".join(generator.choice(("the", "sum", "of", "all", "terms", "is", "not", "zero")) for _ in range(4000))
    ruled = "-" * 200 + "\n" + "0, " * 100
    for text in (numbers, code, prose, ruled):
        assert RepetitionDetector(ngram=64, times=8).first(text.encode()) is None


def test_the_cost_of_a_token_does_not_grow_with_the_response():
    detector = RepetitionDetector(ngram=64, times=8)
    generator = random.Random(2)
    seconds = []
    for _ in range(40):
        tokens = [generator.randrange(50_000) for _ in range(5000)]
        began = time.process_time()
        detector.first(tokens)
        seconds.append(time.process_time() - began)
    assert median(seconds[-10:]) < 3 * median(seconds[:10])
