# SPDX-License-Identifier: Apache-2.0
"""The length reward (paper, section 2.3.3): among responses to one prompt, shorter correct ones are worth more."""

from collections.abc import Sequence


def length_rewards(lengths: Sequence[int], correct: Sequence[bool]) -> list[float]:
    """The length reward of each of the k responses to one prompt, each in [-0.5, 0.5].

    lambda_j = 0.5 - (len_j - min) / (max - min); a correct response gets lambda_j, a wrong one min(0, lambda_j), and
    all get 0 when all are equally long. min and max are over all k responses.

    >>> length_rewards([10, 20, 30], [True, True, False])
    [0.5, 0.0, -0.5]
    """
    shortest, longest = min(lengths, default=0), max(lengths, default=0)
    if shortest == longest:
        return [0.0] * len(lengths)
    shares = [0.5 - (length - shortest) / (longest - shortest) for length in lengths]
    return [share if right else min(0.0, share) for share, right in zip(shares, correct, strict=True)]
