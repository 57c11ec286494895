# SPDX-License-Identifier: Apache-2.0
"""Whatever the trainer's layout, the engines get the weights of one rank, and all agree on them."""

from functools import cache
from pathlib import Path

import pytest
import torch
from engine_fixture import Engine, reference_logprobs
from safetensors.torch import load_file, save_file
from trainer_layouts import CASES, MODELS, PROBE, RANKS, RESUMED, SEED, Case, Outcome, run, write_model
from transformers import AutoConfig, AutoModelForCausalLM

from tandem_api.errors import UserError
from tandem_api.spec.hybrid import Parallelism
from tandem_trainer.bridge import build_bridge
from tandem_trainer.parallel import Layout
from tandem_trainer.weights import SeededWeights

pytestmark = pytest.mark.timeout(900)  # the first test waits for four ranks that go through all cases
TOLERANCE = 1e-4
BY_NAME = pytest.mark.parametrize("case", CASES, ids=str)
WITH_ENGINE = [Case("tied", tensor=2, pipeline=2), Case("tied", tensor=4), Case("tied", tensor=2, context=2)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def outcomes(directory: Path) -> dict[str, Outcome]:
    return run(directory, CASES)


@cache
def reference(directory: Path, model: str) -> torch.nn.Module:
    """The model in transformers, with the weights that the trainer was given."""
    place = write_model(directory / f"reference {model}", model)
    config = AutoConfig.from_pretrained(place)
    seeded = SeededWeights(config, SEED)
    tied = config.tie_word_embeddings
    names = [name for name in seeded.names() if not (tied and name == "lm_head.weight")]
    save_file({name: seeded.load_one_hf_weight(name) for name in names}, place / "model.safetensors")
    return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()


def probe_log_probs(model: torch.nn.Module) -> torch.Tensor:
    """float32 [len(PROBE) - 1]."""
    logits = model(torch.tensor([PROBE])).logits[0, :-1].log_softmax(-1)
    return logits.gather(-1, torch.tensor(PROBE[1:])[:, None]).squeeze(-1)


def test_the_matrix_is_large_enough() -> None:
    assert len({str(case) for case in CASES}) == len(CASES) >= 20


@BY_NAME
def test_the_trainer_computes_what_one_rank_of_transformers_does(
    outcomes: dict[str, Outcome], directory: Path, case: Case
) -> None:
    model = reference(directory, case.model)
    log_probs = probe_log_probs(model).detach()
    torch.testing.assert_close(torch.tensor(outcomes[str(case)].log_probs), log_probs, atol=TOLERANCE, rtol=0)


@BY_NAME
def test_the_gradient_is_that_of_one_rank_of_transformers(
    outcomes: dict[str, Outcome], directory: Path, case: Case
) -> None:
    model = reference(directory, case.model)
    model.get_input_embeddings().padding_idx = None  # transformers leaves out the gradient of this token's embedding
    model.zero_grad()
    probe_log_probs(model).sum().backward()
    squares = [parameter.grad.square().sum() for parameter in model.parameters() if parameter.grad is not None]
    norm = float(torch.stack(squares).sum().sqrt())
    assert outcomes[str(case)].gradient_norm == pytest.approx(norm, rel=TOLERANCE)


@BY_NAME
def test_the_weights_arrive_bit_for_bit_under_their_names(
    outcomes: dict[str, Outcome], directory: Path, case: Case
) -> None:
    reference(directory, case.model)
    given = load_file(directory / f"reference {case.model}" / "model.safetensors")
    arrived = load_file(outcomes[str(case)].weights)
    assert arrived.keys() == given.keys()
    assert [name for name in given if not torch.equal(arrived[name], given[name])] == []


def test_all_ranks_and_all_layouts_of_a_model_agree_on_the_digest(outcomes: dict[str, Outcome]) -> None:
    digests: dict[str, set[str]] = {}
    for case in CASES:
        assert len(outcomes[str(case)].digests) == RANKS
        digests.setdefault(case.model, set()).update(outcomes[str(case)].digests)
    assert {model: len(found) for model, found in digests.items()} == dict.fromkeys(MODELS, 1)


def assert_engine_computes(engine: Engine, outcome: Outcome, model: torch.nn.Module, version: int) -> None:
    """After a handoff of what came of a layout."""
    manifest = engine.hand_over(version, list(load_file(outcome.weights).items()), bucket_bytes=2**15)
    answer = engine.generate(list(PROBE), 24)
    assert answer.versions == [str(version)] * 24
    expected = reference_logprobs(model, list(PROBE), answer.tokens)
    torch.testing.assert_close(answer.logprobs, expected, atol=TOLERANCE, rtol=0)
    assert engine.report()["digest"] == manifest.digest


@pytest.mark.parametrize("case", RESUMED, ids=str)
def test_a_checkpoint_of_a_layout_goes_on_bit_for_bit_as_if_there_had_been_no_stop(
    outcomes: dict[str, Outcome], case: Case
) -> None:
    without_stop, resumed = outcomes[str(case)].updates
    assert resumed == without_stop
    assert without_stop[0] != outcomes[str(case)].digests


@pytest.mark.parametrize("case", WITH_ENGINE, ids=str)
def test_the_engine_computes_with_the_weights_of_a_layout(
    engine: Engine, outcomes: dict[str, Outcome], directory: Path, case: Case
) -> None:
    version = 7000 + WITH_ENGINE.index(case)
    assert_engine_computes(engine, outcomes[str(case)], reference(directory, case.model), version)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"tensor": 3}, "does not divide"),
        ({"tensor": 2, "context": 4}, "does not divide"),
        ({"pipeline": 2, "expert": 4}, "the 2 ranks of a pipeline stage"),
    ],
)
def test_sizes_that_do_not_divide_the_ranks_are_refused(sizes: dict[str, int], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Layout.of(Parallelism(**sizes), RANKS)


def test_a_layout_is_what_the_sizes_leave() -> None:
    assert Layout.of(Parallelism(tensor=2, context=2, expert=4), 16) == Layout(2, 1, 4, 2, 4)


@pytest.mark.parametrize(
    ("model", "changes", "named"),
    [
        ("tied", {}, "no experts"),
        ("experts", {"num_experts": 6}, "does not divide the model's 6 experts"),
        ("experts", {"mlp_only_layers": [1]}, "mlp_only_layers"),
    ],
)
def test_experts_that_cannot_be_dealt_out_are_refused(
    tmp_path: Path, model: str, changes: dict[str, object], named: str
) -> None:
    config = AutoConfig.from_pretrained(write_model(tmp_path, model), **changes)
    with pytest.raises(UserError, match=named):
        build_bridge(config, torch.float32, Layout(data=4, expert=4))
