# SPDX-License-Identifier: Apache-2.0
"""Reading the batch that the orchestrator serves."""

from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from trainer_world import batch, warmup_rows

from tandem_trainer.batch import Batch, MalformedBatch

Tensors = dict[str, torch.Tensor]


def _body(tensors: Tensors, iteration: int = 0) -> bytes:
    return safetensors.torch.save(tensors, {"iteration": str(iteration), "digest": "sha256:0"})


def test_a_batch_is_read_as_it_was_written() -> None:
    written = batch(seed=1, version=4)
    read = Batch.parse(_body(written, 3), iteration=3)
    assert len(read) == 32
    assert read.tokens.equal(written["tokens"].long())
    assert read.rewards.equal(written["rewards"])
    assert read.lengths.sum() == len(written["tokens"])


def test_warm_up_rows_are_read_without_rewards() -> None:
    read = Batch.parse(_body(warmup_rows(1)), iteration=None)
    assert len(read) == 25
    assert read.tokens_in_loss().sum() == read.loss_mask.sum()


def test_minibatches_are_whole_prompts_and_together_the_batch() -> None:
    read = Batch.parse(_body(batch(seed=1, version=4)), iteration=0)
    chunks = list(read.minibatches(3, torch.Generator().manual_seed(1)))
    assert [len(chunk) for chunk in chunks] == [12, 12, 8]
    assert torch.cat(chunks).sort().values.equal(torch.arange(32))
    seen = [set(read.groups[chunk].tolist()) for chunk in chunks]
    assert sum(len(prompts) for prompts in seen) == len(set.union(*seen))


def test_stale_tokens_leave_the_loss_and_nothing_else() -> None:
    tensors = batch(seed=1, version=4)
    written = tensors["lossMask"].nonzero().squeeze(1)
    stale = written[::3]
    tensors["versions"][stale] = 3
    whole = Batch.parse(_body(tensors), iteration=0)
    fresh = whole.without_stale_tokens(version=4)
    assert fresh.loss_mask[stale].sum() == 0
    assert fresh.loss_mask.sum() == whole.loss_mask.sum() - len(stale)
    assert fresh.tokens.equal(whole.tokens)


def _without_rewards(tensors: Tensors) -> None:
    del tensors["engineLogprobs"]


def _wrong_dtype(tensors: Tensors) -> None:
    tensors["tokens"] = tensors["tokens"].long()


def _wrong_length(tensors: Tensors) -> None:
    tensors["versions"] = tensors["versions"][:-1]


def _wrong_offsets(tensors: Tensors) -> None:
    tensors["offsets"][-1] += 1


def _not_finite(tensors: Tensors) -> None:
    tensors["rewards"][3] = float("nan")


def _loss_on_first(tensors: Tensors) -> None:
    tensors["lossMask"][0] = 1


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_without_rewards, "engineLogprobs"),
        (_wrong_dtype, "tokens"),
        (_wrong_length, "versions"),
        (_wrong_offsets, "offsets"),
        (_not_finite, "rewards"),
        (_loss_on_first, "lossMask"),
    ],
)
def test_a_malformed_batch_is_refused_by_the_tensors_name(damage: Callable[[Tensors], None], named: str) -> None:
    tensors = batch(seed=1, version=4)
    damage(tensors)
    with pytest.raises(MalformedBatch, match=named):
        Batch.parse(_body(tensors), iteration=0)


def test_the_batch_of_another_iteration_is_refused() -> None:
    with pytest.raises(MalformedBatch, match="iteration 5"):
        Batch.parse(_body(batch(seed=1, version=4), iteration=5), iteration=4)


def test_what_is_not_safetensors_is_refused() -> None:
    with pytest.raises(MalformedBatch, match="safetensors"):
        Batch.parse(b"<html>", iteration=0)
