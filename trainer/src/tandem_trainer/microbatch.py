# SPDX-License-Identifier: Apache-2.0
"""Cut a minibatch into what each data parallel rank feeds the model at once.

Samples of similar length are padded to the longest among them. What a minibatch's loss and gradient are does not
depend on the cut: samples carry their weights with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tandem_trainer.batch import Batch
from tandem_trainer.objectives import Credit


@dataclass(slots=True)
class Microbatch:
    """b samples of at most s + 1 tokens each, shifted by one: ``targets[i, j]`` follows ``inputs[i, j]``.

    All [b, s] unless said: ``mask`` is 1 on targets that count in the loss, ``scored`` [m] are the flat indices of
    the targets whose log-prob is wanted (at least one); ``advantages`` and ``weights`` are [b]. ``reference`` is
    filled in once it is known.
    """

    inputs: Tensor
    targets: Tensor
    positions: Tensor
    mask: Tensor
    scored: Tensor
    engine_log_probs: Tensor
    versions: Tensor
    advantages: Tensor
    weights: Tensor
    reference: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.reference = torch.zeros_like(self.mask)


def plan(lengths: list[int], ranks: int, most_tokens: int) -> list[list[list[int]]]:
    """For each rank its microbatches, as lists of sample indices; every rank gets the same number of them.

    Samples are dealt out by length, so that ranks get equal shares, and filled into microbatches of at most
    ``most_tokens`` with padding (a longer sample goes alone). Ranks with fewer microbatches get empty ones.
    """
    by_length = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    shares: list[list[list[int]]] = []
    for rank in range(ranks):
        microbatches: list[list[int]] = []
        for index in _dealt(by_length, rank, ranks):
            longest = lengths[microbatches[-1][0]] if microbatches else 0
            if microbatches and longest * (len(microbatches[-1]) + 1) <= most_tokens:
                microbatches[-1].append(index)
            else:
                microbatches.append([index])
        shares.append(microbatches)
    most = max(len(share) for share in shares)
    return [share + [[]] * (most - len(share)) for share in shares]


def _dealt(by_length: list[int], rank: int, ranks: int) -> list[int]:
    """This rank's samples: dealt to and fro, so that no rank always gets the longer one."""
    rounds = [by_length[start : start + ranks] for start in range(0, len(by_length), ranks)]
    seats = [rank if number % 2 == 0 else ranks - 1 - rank for number in range(len(rounds))]
    return [row[seat] for row, seat in zip(rounds, seats, strict=True) if seat < len(row)]


def build(batch: Batch, chosen: Tensor, credit: Credit, device: torch.device, multiple: int = 1) -> Microbatch:
    """Pad the ``chosen`` samples [b], of this ``credit`` [b], into a microbatch on ``device``.

    The padded length is a multiple of ``multiple`` (sequence parallelism cuts it by the tensor parallel size).
    None chosen make an empty microbatch: one token that counts for nothing.
    """
    if not len(chosen):
        return _empty(device, multiple)
    lengths = batch.lengths[chosen]
    width = -(-int(lengths.max() - 1) // multiple) * multiple
    columns = torch.arange(width + 1)
    inside = columns[None, :] < lengths[:, None]
    where = (batch.offsets[chosen][:, None] + columns[None, :]) * inside

    def padded(values: Tensor) -> Tensor:
        return values[where] * inside

    tokens, mask = padded(batch.tokens), padded(batch.loss_mask)[:, 1:]
    scored = mask.flatten().nonzero().squeeze(1)
    return Microbatch(
        *(
            tensor.contiguous().to(device)
            for tensor in (
                tokens[:, :-1],
                tokens[:, 1:],
                columns[:-1].expand(len(chosen), -1),
                mask,
                scored if len(scored) else torch.zeros(1, dtype=torch.int64),
                padded(batch.engine_log_probs)[:, 1:],
                padded(batch.versions)[:, 1:],
                credit.advantages,
                credit.weights,
            )
        )
    )


def probe(tokens: Sequence[int], device: torch.device, multiple: int = 1) -> Microbatch:
    """One sample with every token but the first scored."""
    length = len(tokens)
    batch = Batch(
        torch.tensor(tokens),
        torch.tensor([0, length]),
        torch.ones(length),
        torch.zeros(length),
        torch.zeros(length),
        torch.zeros(1),
        torch.zeros(1),
    )
    return build(batch, torch.tensor([0]), Credit(torch.zeros(1), torch.zeros(1)), device, multiple)


def _empty(device: torch.device, multiple: int) -> Microbatch:
    tokens = torch.zeros(1, multiple, dtype=torch.int64, device=device)
    nothing, sample = torch.zeros(1, multiple, device=device), torch.zeros(1, device=device)
    first = torch.zeros(1, dtype=torch.int64, device=device)
    return Microbatch(tokens, tokens, tokens, nothing, first, nothing, tokens, sample, sample)
