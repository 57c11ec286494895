# SPDX-License-Identifier: Apache-2.0
"""Noticing, while a response is generated, that it repeats itself (section 2.6.2).

With the defaults (64 tokens, 8 times) none of 25 MB of Python source, 2 MB of documentation and tables of numbers is
taken for a loop, neither as 7.5 million subwords nor as 27 million characters. What repeats to the letter is a loop,
whatever it means: a matrix of more than 512 zeros, a ruled line of 512 dashes.
"""

from collections import deque
from collections.abc import Iterable

_MODULUS = (1 << 61) - 1
_BASE = 1_000_003


class RepetitionDetector:
    """Tells when the last ``ngram * times`` tokens are one piece of at most ``ngram`` tokens, over and over.

    A shorter piece must fill as many tokens as ``times`` pieces of the full size, so that a ruled line or a row of
    zeros is not taken for a loop. The cost of a token does not depend on how many came before: a rolling hash of the
    last ``ngram`` tokens finds a candidate period, and from then on one comparison a token confirms or refutes it.
    Memory is O(ngram).

    >>> detector = RepetitionDetector(ngram=2, times=3)
    >>> [detector.push(token) for token in (7, 1, 2, 1, 2, 1, 2)]
    [False, False, False, False, False, False, True]
    """

    def __init__(self, ngram: int, times: int) -> None:
        self._ngram = ngram
        self._enough = ngram * times
        self._recent: deque[int] = deque(maxlen=ngram + 1)
        self._hash = 0
        self._leading = pow(_BASE, ngram, _MODULUS)
        self._count = 0
        self._seen: dict[int, int] = {}
        self._hashes: deque[int] = deque()
        self._period = 0
        self._span = 0

    def push(self, token: int) -> bool:
        """Take the next token; ``True`` once the response repeats itself, and as long as it goes on to."""
        self._recent.append(token)
        self._count += 1
        self._roll(token)
        if self._period and token == self._recent[-1 - self._period]:
            self._span += 1
        else:
            self._period = self._span = 0
        if self._count >= self._ngram:
            self._remember()
        return self._span >= self._enough

    def first(self, tokens: Iterable[int]) -> int | None:
        """Push all; how many of ``tokens`` there were when the repetition was noticed, or ``None``."""
        for number, token in enumerate(tokens, start=1):
            if self.push(token):
                return number
        return None

    def _roll(self, token: int) -> None:
        self._hash = (self._hash * _BASE + token + 1) % _MODULUS
        if self._count > self._ngram:
            self._hash = (self._hash - (self._recent[0] + 1) * self._leading) % _MODULUS

    def _remember(self) -> None:
        before = self._seen.get(self._hash)
        if not self._period and before is not None:
            self._period = self._count - before
            self._span = self._ngram + self._period
        self._seen[self._hash] = self._count
        self._hashes.append(self._hash)
        if len(self._hashes) > self._ngram:
            oldest = self._hashes.popleft()
            if self._seen.get(oldest) == self._count - self._ngram:
                del self._seen[oldest]
