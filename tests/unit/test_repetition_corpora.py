# SPDX-License-Identifier: Apache-2.0
"""Nothing that people write is taken for a loop: source code, documentation and tables of numbers."""

import importlib.metadata
import math
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer

from tandem_api.repetition import RepetitionDetector
from tandem_api.spec.algorithm import Repetition

VOCABULARY = 4096


def source_code() -> list[str]:
    """Every eighth module of the standard library's packages: code, docstrings and encoding tables."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(library.glob("*/*.py")) if path.parent.name != "site-packages"][::8]
    return [path.read_text(errors="replace") for path in files]


def documentation() -> list[str]:
    """Descriptions of installed packages: prose, Markdown, command lines, badges."""
    descriptions = {d.metadata["Name"]: d.metadata.get("Description") for d in importlib.metadata.distributions()}
    return [text for text in descriptions.values() if text][::2]


def tables() -> list[str]:
    return ["".join(table) for table in (_powers(), _identity(), _truth(), _series(), _grid(), _csv(), _hexadecimal())]


def _powers() -> Iterator[str]:
    return (f"| {n} | {n * n} | {n**3} | {math.sqrt(n):.4f} |\n" for n in range(400))


def _identity() -> Iterator[str]:
    return ("[" + ", ".join("1" if row == column else "0" for column in range(48)) + "]\n" for row in range(48))


def _truth() -> Iterator[str]:
    return (" | ".join(f"{row:010b}") + f" | {row.bit_count() % 2}\n" for row in range(1024))


def _series() -> Iterator[str]:
    return (f"{n / 100:.2f}\t0.000\t{math.sin(n / 100):+.3f}\n" for n in range(600))


def _grid() -> Iterator[str]:
    return (" ".join(f"{row * column:3d}" for column in range(1, 25)) + "\n" for row in range(1, 25))


def _csv() -> Iterator[str]:
    drawn = random.Random(1)
    return (",".join(str(drawn.randrange(2)) for _ in range(40)) + "\n" for _ in range(200))


def _hexadecimal() -> Iterator[str]:
    return (f"{16 * n:08x}  " + "00 " * 15 + f"{n % 256:02x}\n" for n in range(300))


def false_positives(texts: list[list[int]] | list[bytes]) -> int:
    defaults = Repetition()
    return sum(RepetitionDetector(defaults.ngram, defaults.times).first(text) is not None for text in texts)


@pytest.mark.parametrize("corpus", [source_code, documentation, tables])
def test_no_text_is_taken_for_a_loop_as_subwords_or_as_characters(corpus):
    texts = corpus()
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts[:100], vocab_size=VOCABULARY, show_progress=False)
    subwords = [encoding.ids for encoding in tokenizer.encode_batch([text[:20_000] for text in texts])]
    characters = [text[:20_000].encode() for text in texts]
    print(f"{corpus.__name__}: {sum(map(len, subwords)):,} subwords, {sum(map(len, characters)):,} characters")
    assert (false_positives(subwords), false_positives(characters)) == (0, 0)


def test_what_repeats_to_the_letter_is_a_loop_whatever_it_means():
    zeros = ("0 " * 20 + "\n") * 20
    assert RepetitionDetector(ngram=64, times=8).first(zeros.encode()) is not None
