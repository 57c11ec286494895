# SPDX-License-Identifier: Apache-2.0
"""What an objective is given and what it gives back."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Credit:
    """What each of n samples of a minibatch counts: ``advantages`` [n], and ``weights`` [n] in the loss."""

    advantages: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class Terms:
    """b samples padded to s tokens, as the loss sees them.

    ``log_probs`` [b, s] of the policy (differentiable), ``reference`` [b, s] of the iteration's first policy,
    ``mask`` [b, s] 1 on the tokens that count, ``advantages`` [b], ``weights`` [b].
    """

    log_probs: Tensor
    reference: Tensor
    mask: Tensor
    advantages: Tensor
    weights: Tensor


class Objective(Protocol):
    """A loss that is a sum over samples, so that it does not depend on how a minibatch is cut into pieces."""

    @property
    def needs_reference(self) -> bool:
        """Whether ``reference`` must be computed; it is zeros otherwise."""
        ...

    def credit(self, rewards: Tensor, groups: Tensor, tokens: Tensor) -> Credit:
        """Weigh a whole minibatch: ``rewards`` [n], ``groups`` [n] (the prompt's index), ``tokens`` [n] that count."""
        ...

    def loss(self, terms: Terms) -> tuple[Tensor, dict[str, Tensor]]:
        """This piece's share of the minibatch's loss, and metrics by name, which add up over pieces."""
        ...
