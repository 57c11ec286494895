# SPDX-License-Identifier: Apache-2.0
"""Responses to made problems, for the supervised warm-up."""

import hashlib
import re

_SUM = re.compile(r"-?\d+( [+-] \d+)*")
_TERM = re.compile(r"([+-]?) ?(\d+)")


def solution(answer: str, expression: str | None, shows_steps: bool) -> str:
    """The text that follows the prompt: with its working where it is asked for and ``expression`` is a sum.

    >>> solution("5", "4 + 3 - 2", shows_steps=True)
    '\\n4 + 3 =7 - 2 =5'
    >>> solution("5", "4 + 3 - 2", shows_steps=False)
    '=5'
    """
    if not shows_steps or expression is None or not _SUM.fullmatch(expression):
        return f"={answer}"
    return "\n" + running_totals(expression)


def running_totals(expression: str) -> str:
    """A sum with the total after each term: ``4 + 3 - 2`` -> ``4 + 3 =7 - 2 =5``."""
    terms = [int(sign + digits) for sign, digits in _TERM.findall(expression)]
    total, text = terms[0], str(terms[0])
    for term in terms[1:]:
        total += term
        text += f" {'-' if term < 0 else '+'} {abs(term)} ={total}"
    return text


def shows_steps(record: str, fraction: float) -> bool:
    """Whether the solution of this record is one of the ``fraction`` that show their working; fixed by its id."""
    drawn = int.from_bytes(hashlib.blake2b(record.encode(), digest_size=8).digest())
    return drawn < fraction * 2**64
