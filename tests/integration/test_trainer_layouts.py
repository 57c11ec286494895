# SPDX-License-Identifier: Apache-2.0
"""Trainer ranks under torchrun, told what to do as by a sidecar: one rank, and two cut in each possible way, of a dense
model and of one with experts.
"""

import errno
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import offloading_trainer
import pytest
import torch
from trainer_world import CONFIG, Orchestrator, World, batch, job_spec, running_world, warmup_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from tandem_api.messages.trainer import Checkpoint, FinishRun, Load, TrainerReply, TrainStep, Warmup

PROBE = (3, 5, 7, 9, 4, 2, 8, 8, 11)
TOLERANCE = 1e-4
EXPERTS = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "norm_topk_prob": True,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
}


@dataclass(frozen=True)
class Layout:
    """Ranks and how they are cut, and the layout whose checkpoint it goes on from and to which it is compared."""

    beside: str
    ranks: int = 2
    parallelism: Mapping[str, int] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    program: tuple[str, ...] = ("-m", "tandem_trainer")


LAYOUTS = {
    "one": Layout("one", ranks=1),
    "tensor": Layout("one", parallelism={"tensor": 2}),
    "pipeline": Layout("one", parallelism={"pipeline": 2}),
    "data": Layout("one"),
    "leaving": Layout("one", ranks=1, program=(offloading_trainer.__file__,)),
    "experts on one": Layout("experts on one", ranks=1, model=EXPERTS),
    "experts on two": Layout("experts on one", parallelism={"expert": 2}, model=EXPERTS),
    "experts back on one": Layout("experts on two", ranks=1, model=EXPERTS),
}
OTHERS = [name for name, layout in LAYOUTS.items() if layout.beside != name]


@dataclass
class Run:
    """What came of one layout: warm-up, three iterations, an export, and the last iteration once more.

    ``port``: why somebody else could not bind the port where the ranks are to meet, before they are told to.
    """

    directory: Path
    port: int | None
    warmup: TrainerReply
    steps: list[TrainerReply]
    weights: dict[str, torch.Tensor]
    exported: TrainerReply
    resumed: TrainerReply
    resumed_weights: dict[str, torch.Tensor]
    refusals: dict[str, TrainerReply] = field(default_factory=dict)
    again: TrainerReply | None = None
    requests: list[str] = field(default_factory=list)
    finish: TrainerReply | None = None
    exit_code: int | None = None


def _train(world: World) -> tuple[TrainerReply, list[TrainerReply]]:
    loaded = world.ask(Load(epoch=1))
    assert loaded.error is None
    warmup = world.ask(Warmup(epoch=2, save=True))
    steps = [
        world.ask(TrainStep(epoch=3 + number, iteration=number, weight_version=number, save=number == 1))
        for number in range(3)
    ]
    return warmup, steps


def _why_not_bound(port: int) -> int | None:
    """The number of the error that binding a port ends with."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        return error.errno
    return None


def _run(world: World, directory: Path, resume_from: Path) -> Run:
    port = _why_not_bound(world.meeting_port())
    warmup, steps = _train(world)
    weights, exported = world.export(7, 3, PROBE)
    world.ask(Load(epoch=8, checkpoint=str(resume_from / "iter-0000002")))
    resumed = world.ask(TrainStep(epoch=9, iteration=2, weight_version=2))
    resumed_weights, _ = world.export(10, 3)
    return Run(directory, port, warmup, steps, weights, exported, resumed, resumed_weights)


def _try_what_is_refused(world: World, orchestrator: Orchestrator, run: Run) -> None:
    last = TrainStep(epoch=21, iteration=2, weight_version=2)
    world.ask(Load(epoch=20, checkpoint="iter-0000002"))
    first = world.ask(last)
    served = len(orchestrator.requests)
    run.again = world.ask(last)
    run.requests = orchestrator.requests[served:]
    assert run.again == first
    run.refusals["iteration"] = world.ask(TrainStep(epoch=22, iteration=7, weight_version=7))
    run.refusals["batch"] = world.ask(TrainStep(epoch=23, iteration=3, weight_version=3))
    run.refusals["checkpoint"] = world.ask(Load(epoch=24, checkpoint="iter-0000009"))
    run.refusals["unloaded"] = world.ask(Checkpoint(epoch=25, iteration=0))
    world.ask(Load(epoch=26, checkpoint="iter-0000002"))
    world.ask(TrainStep(epoch=27, iteration=2, weight_version=2, save=True))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    done: dict[str, Run] = {}
    with Orchestrator().serving() as orchestrator:
        for number in range(3):
            orchestrator.put_batch(number, batch(seed=number, version=number))
        orchestrator.put_warmup(warmup_rows(seed=9))
        for name, layout in LAYOUTS.items():
            directory = tmp_path_factory.mktemp(name.replace(" ", "-"))
            spec: dict[str, Any] = job_spec(parallelism=layout.parallelism) | {"checkpoint": {"keep": 2}}
            spec["model"]["source"]["random"]["config"] = CONFIG | layout.model
            with running_world(spec, orchestrator, directory, layout.ranks, layout.program) as world:
                other = directory if layout.beside == name else done[layout.beside].directory
                run = done[name] = _run(world, directory, other)
                if name == "one":
                    _try_what_is_refused(world, orchestrator, run)
                run.finish = world.ask(FinishRun(epoch=99, export=True))
                run.exit_code = world.wait()
        yield done


def _curve(run: Run) -> list[float]:
    return [reply.measured[name] for reply in run.steps for name in ("loss", "gradNorm", "tauPenalty")]


def _largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()  # ranks of experts yield theirs by turns
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def _other(runs: dict[str, Run], layout: str) -> Run:
    return runs[LAYOUTS[layout].beside]


@pytest.mark.parametrize("layout", OTHERS)
def test_losses_equal_those_of_the_other_layout(runs: dict[str, Run], layout: str) -> None:
    assert _curve(runs[layout]) == pytest.approx(_curve(_other(runs, layout)), abs=TOLERANCE, rel=TOLERANCE)


@pytest.mark.parametrize("layout", OTHERS)
def test_weights_equal_those_of_the_other_layout(runs: dict[str, Run], layout: str) -> None:
    # Adam's first steps have the size of the learning rate whatever the gradient's: rounding shows where it is tiny.
    assert _largest_difference(runs[layout].weights, _other(runs, layout).weights) < 1e-3


@pytest.mark.parametrize("layout", OTHERS)
def test_the_warm_up_equals_that_of_the_other_layout(runs: dict[str, Run], layout: str) -> None:
    assert runs[layout].warmup.measured == pytest.approx(_other(runs, layout).warmup.measured, abs=TOLERANCE)


@pytest.mark.parametrize("layout", OTHERS)
def test_a_checkpoint_of_the_other_layout_goes_on_the_same(runs: dict[str, Run], layout: str) -> None:
    other = _other(runs, layout)
    assert runs[layout].resumed.measured == pytest.approx(other.steps[2].measured, abs=1e-3, rel=1e-3)
    assert _largest_difference(runs[layout].resumed_weights, other.weights) < 1e-3


@pytest.mark.parametrize("layout", ["one", "experts on one"])
def test_a_checkpoint_goes_on_exactly_as_if_there_had_been_no_stop(runs: dict[str, Run], layout: str) -> None:
    one = runs[layout]
    assert one.resumed.measured == one.steps[2].measured
    assert _largest_difference(one.resumed_weights, one.weights) == 0.0


def test_a_trainer_that_leaves_its_device_learns_the_same_and_holds_its_weights_at_most(runs: dict[str, Run]) -> None:
    leaving, one = runs["leaving"], runs["one"]
    assert _largest_difference(leaving.weights, one.weights) == 0.0
    assert _largest_difference(leaving.resumed_weights, one.resumed_weights) == 0.0
    told = [json.loads(line) for line in (leaving.directory / offloading_trainer.HELD).read_text().splitlines()]
    assert {held["command"] for held in told} == {"load", "warmup", "step", "export", "finish"}
    for held in told:
        assert held["gradients"] == held["moments"] == 0
        assert (held["weights"] == 0) is (held["command"] == "export")


def test_the_port_where_ranks_meet_is_taken_before_they_are_told_to_meet(runs: dict[str, Run]) -> None:
    assert {name: run.port for name, run in runs.items()} == dict.fromkeys(runs, errno.EADDRINUSE)


def test_the_warm_up_lowers_the_loss(runs: dict[str, Run]) -> None:
    measured = runs["one"].warmup.measured
    assert measured["loss"] < measured["firstLoss"]
    assert measured["updates"] == 6


def test_a_step_reports_what_the_phases_need(runs: dict[str, Run]) -> None:
    first = runs["one"].steps[0]
    assert {"loss", "gradNorm", "tokens", "logprobDiffMean", "logprobDiffMax", "tauPenalty"} <= first.measured.keys()
    assert {"data", "reference", "update"} <= first.seconds.keys()
    assert first.measured["tokens"] == float(batch(seed=0, version=0)["lossMask"].sum())


def test_the_learning_rate_falls_as_the_spec_says(runs: dict[str, Run]) -> None:
    rates = [reply.measured["learningRate"] for reply in runs["one"].steps]
    assert rates == pytest.approx([1e-3, 7.5e-4, 5e-4])


def test_a_command_sent_again_is_answered_and_not_done_again(runs: dict[str, Run]) -> None:
    assert runs["one"].again is not None
    assert runs["one"].again.measured == runs["one"].resumed.measured
    assert runs["one"].requests == []


@pytest.mark.parametrize(
    ("case", "named"),
    [
        ("iteration", "after 7 iterations"),
        ("batch", "batches/3"),
        ("checkpoint", "iter-0000009"),
        ("unloaded", "load"),
    ],
)
def test_a_refused_command_says_why_and_leaves_the_rank_able_to_go_on(
    runs: dict[str, Run], case: str, named: str
) -> None:
    assert named in (runs["one"].refusals[case].error or "")
    assert runs["one"].exit_code == 0


def test_only_the_newest_checkpoints_stay_and_latest_names_the_newest(runs: dict[str, Run]) -> None:
    directory = runs["one"].directory
    assert sorted(path.name for path in directory.glob("iter-*")) == ["iter-0000002", "iter-0000003"]
    assert (directory / "latest").read_text() == "iter-0000003"
    assert not list(directory.glob(".*"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plain_transformers_loads_the_export_and_scores_the_probe_as_the_trainer_did(
    runs: dict[str, Run], layout: str
) -> None:
    run = runs[layout]
    assert run.finish is not None
    directory = str(run.finish.path)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([PROBE])).logits[0, :-1].log_softmax(-1)
    scored = logits.gather(1, torch.tensor(PROBE[1:])[:, None]).squeeze(1).tolist()
    assert scored == pytest.approx(run.exported.probe_logprobs, abs=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.decode(tokenizer.encode("1+2=3")) == "1+2=3"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_export_says_what_was_sent(runs: dict[str, Run], layout: str) -> None:
    run = runs[layout]
    assert run.exported.digest == _other(runs, layout).exported.digest
    assert run.exported.measured["tensors"] == len(run.weights)
    assert run.exported.measured["bytes"] == sum(tensor.nbytes for tensor in run.weights.values())
