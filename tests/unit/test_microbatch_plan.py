# SPDX-License-Identifier: Apache-2.0
"""How a minibatch is cut into microbatches, and what they hold."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tandem_trainer.batch import Batch
from tandem_trainer.microbatch import build, plan
from tandem_trainer.objectives import Credit

lengths = st.lists(st.integers(2, 400), min_size=1, max_size=80)


@given(lengths, st.integers(1, 5), st.integers(1, 2000))
def test_every_sample_is_in_exactly_one_microbatch_of_one_rank(sizes: list[int], ranks: int, budget: int) -> None:
    shares = plan(sizes, ranks, budget)
    assert sorted(index for share in shares for microbatch in share for index in microbatch) == list(range(len(sizes)))


@given(lengths, st.integers(1, 5), st.integers(1, 2000))
def test_every_rank_has_the_same_number_of_microbatches(sizes: list[int], ranks: int, budget: int) -> None:
    assert len({len(share) for share in plan(sizes, ranks, budget)}) == 1


@given(lengths, st.integers(1, 5), st.integers(1, 2000))
def test_padded_microbatches_keep_to_the_budget_unless_one_sample_exceeds_it(
    sizes: list[int], ranks: int, budget: int
) -> None:
    for share in plan(sizes, ranks, budget):
        for microbatch in share:
            padded = len(microbatch) * max((sizes[index] for index in microbatch), default=0)
            assert padded <= budget or len(microbatch) == 1


@given(st.lists(st.integers(2, 400), min_size=8, max_size=80), st.integers(2, 4))
def test_ranks_get_shares_that_differ_by_less_than_two_samples(sizes: list[int], ranks: int) -> None:
    tokens = [sum(sizes[index] for microbatch in share for index in microbatch) for share in plan(sizes, ranks, 1000)]
    assert max(tokens) - min(tokens) < 2 * max(sizes)


def _batch(sizes: list[int]) -> Batch:
    generator = torch.Generator().manual_seed(sum(sizes))
    total = sum(sizes)
    offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    mask = torch.ones(total)
    mask[offsets[:-1]] = 0
    return Batch(
        torch.randint(1, 100, (total,), generator=generator),
        offsets,
        mask,
        -torch.rand(total, generator=generator) * mask,
        torch.where(mask > 0, 3, -1),
        torch.zeros(len(sizes)),
        torch.arange(len(sizes)),
    )


@given(st.lists(st.integers(2, 30), min_size=1, max_size=10), st.sampled_from([1, 4]))
def test_a_microbatch_holds_each_tokens_successor_and_what_is_known_of_it(sizes: list[int], multiple: int) -> None:
    batch = _batch(sizes)
    credit = Credit(torch.rand(len(sizes)), torch.rand(len(sizes)))
    microbatch = build(batch, torch.arange(len(sizes)), credit, torch.device("cpu"), multiple)
    assert microbatch.inputs.shape[1] % multiple == 0
    for row, size in enumerate(sizes):
        own = slice(int(batch.offsets[row]), int(batch.offsets[row + 1]))
        tokens, known = batch.tokens[own], size - 1
        assert microbatch.inputs[row, :known].equal(tokens[:-1])
        assert microbatch.targets[row, :known].equal(tokens[1:])
        assert microbatch.mask[row, :known].equal(batch.loss_mask[own][1:])
        assert microbatch.mask[row, known:].sum() == 0
        assert microbatch.engine_log_probs[row, :known].equal(batch.engine_log_probs[own][1:])
    assert microbatch.scored.equal(microbatch.mask.flatten().nonzero().squeeze(1))


def test_an_empty_microbatch_counts_for_nothing() -> None:
    microbatch = build(
        _batch([5]), torch.tensor([], dtype=torch.int64), Credit(torch.zeros(0), torch.zeros(0)), torch.device("cpu"), 2
    )
    assert microbatch.inputs.shape == (1, 2)
    assert microbatch.mask.sum() == 0
    assert microbatch.weights.sum() == 0
