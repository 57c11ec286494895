# SPDX-License-Identifier: Apache-2.0
"""Two hybrid pods in bfloat16: data parallel training, and two engines that must serve the same weights.

A real Prometheus and a collector of traces watch the run: dashboards, alerts and traces are tested on what they saw.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dashboards.query import EMPTY_ON_ONE_MACHINE, Answer, answers, ask, problems
from otlp_receiver import Span, receiving
from prometheus_server import prometheus
from running import finish, manifest, metrics, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tandem_api.metrics import series_per_job
from tandem_api.utilisation import attribute, held, shares

ITERATIONS = 2
START_SECONDS = 600.0
RUN_SECONDS = 1200.0
TWO_PODS = {
    "spec.iterations": ITERATIONS,
    "spec.hybrid.replicas": 2,
    "spec.model.dtype": "bfloat16",
    "spec.model.source.random.config.num_attention_heads": 2,
    "spec.model.source.random.config.num_key_value_heads": 1,
    "spec.model.source.random.config.head_dim": 64,
    "spec.model.source.random.config.initializer_range": 0.02,
    "spec.rollout.promptsPerIteration": 8,
    "spec.rollout.samplesPerPrompt": 4,
    "spec.data.warmup": None,
    "spec.data.evaluation.reasoningGym.size": 16,
    "spec.checkpoint.export": False,
}


@dataclass(frozen=True)
class Watched:
    """A run, what Prometheus says to every expression of dashboards and alerts, how many series it has of the job."""

    out: Path
    answers: list[Answer]
    series: int
    spans: list[Span]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return metrics(self.out)

    @property
    def timeline(self) -> list[dict[str, Any]]:
        return timeline(self.out)


def timeline(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "timeline.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("replicas")
    out = directory / "out"
    with receiving() as receiver, prometheus(directory) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        process = start(manifest(directory / "job.yaml", TWO_PODS), out)
        try:
            server.scrape(out, pods=3, seconds=START_SECONDS)
            assert finish(process, out, RUN_SECONDS) == 0
        finally:
            process.kill()
            process.wait()
        # The last phase in which every process still answers scrapes.
        end = next(line["start"] for line in timeline(out) if line["phase"] == "Succeeded")
        every = ask(server.url, "series", '{__name__=~"tandem_.+", tandem_rl_dev_job="chain-sum"}', end)
        answered = list(answers(server.url, "default", "chain-sum", end))
        yield Watched(out, answered, every.series, receiver.spans)


pytestmark = pytest.mark.timeout(START_SECONDS + RUN_SECONDS + 60)


def test_in_bfloat16_both_engines_compute_with_the_trainers_weights(run: Watched) -> None:
    trained = [line for line in run.metrics if line["loss"] is not None]
    assert len(trained) == ITERATIONS
    assert max(line["probeDifference"] for line in trained) < 2e-2


def test_both_pods_take_part_in_every_phase(run: Watched) -> None:
    for phase in ("Start", "Release", "Train", "Handoff"):
        assert {part["index"] for part in run.timeline if part["phase"] == phase} == {None, 0, 1}


def test_the_uses_of_each_pods_time_add_up_to_the_time_held(run: Watched) -> None:
    for seconds in attribute(run.timeline, 2).values():
        assert sum(seconds.values()) == pytest.approx(held(run.timeline))
        assert sum(shares(seconds).values()) == pytest.approx(1.0)


def test_prometheus_executes_every_expression_and_every_panel_has_data(run: Watched) -> None:
    assert problems(run.answers) == []
    assert {answer.where for answer in run.answers} >= EMPTY_ON_ONE_MACHINE


def test_the_series_of_the_job_stay_within_the_declared_bound(run: Watched) -> None:
    assert 0 < run.series <= series_per_job(2)


def test_no_alert_fires_for_a_run_that_is_well(run: Watched) -> None:
    assert [answer.where for answer in run.answers if answer.is_alert and answer.series] == []


def test_the_collector_gets_one_trace_an_iteration_with_the_steps_of_both_pods(run: Watched) -> None:
    roots = [span for span in run.spans if not span.parent and span.name == "iteration"]
    assert {span.attributes["tandem.iteration"] for span in roots} >= set(range(ITERATIONS))
    for root in roots[:ITERATIONS]:
        inside = [span for span in run.spans if span.trace == root.trace]
        handoff = next(span for span in inside if span.name == "Handoff")
        pods = {span.name: span for span in inside if span.parent == handoff.id}
        assert set(pods) == {"pod 0", "pod 1"}
        for pod in pods.values():
            assert "transfer" in {span.name for span in inside if span.parent == pod.id}
            assert root.start <= pod.start <= pod.end <= root.end + 0.5


def test_tensorboard_and_the_wandb_history_hold_what_metrics_hold(run: Watched) -> None:
    reader = EventAccumulator(str(run.out / "tensorboard"))
    reader.Reload()
    history = [json.loads(row) for row in (run.out / "wandb" / "wandb-history.jsonl").read_text().splitlines()]
    for name, key in (("reward/mean", "rewardMean"), ("train/loss", "loss"), ("accuracy/held_out", "evalAccuracy")):
        expected = {line["iteration"]: line[key] for line in run.metrics if line[key] is not None}
        assert {event.step: event.value for event in reader.Scalars(name)} == pytest.approx(expected)
        assert {row["_step"]: row[name] for row in history if name in row} == expected
