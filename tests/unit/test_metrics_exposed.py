# SPDX-License-Identifier: Apache-2.0
"""Processes expose what is declared, no more than a bounded number of series, and the numbers that they were told."""

import importlib
import re
import urllib.request
from pathlib import Path

import pytest
from ports import free_port
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tandem_api import metrics as declared
from tandem_api.exposition import counter, gauge, served
from tandem_api.manifest import load
from tandem_api.messages.phases import Ack, Outcome, PhaseName, PhaseRecord, Progress, Step, Switch
from tandem_api.messages.work import Finish, Segment
from tandem_api.metrics import Process
from tandem_api.metrics_page import PAGE, page
from tandem_api.spec import RLJobSpec
from tandem_orchestrator.ledger import timeline_lines
from tandem_orchestrator.metrics import RunMetrics
from tandem_orchestrator.metrics_log import JsonLines
from tandem_orchestrator.results import BatchSummary
from tandem_sidecar.metrics import MemberMetrics

ROOT = Path(__file__).parents[2]
SPEC = load(ROOT / "tests" / "manifests" / "whole.yaml").spec
MEMBERS = SPEC.hybrid.replicas
PHASES = [PhaseName.ROLLOUT, PhaseName.RELEASE, PhaseName.TRAIN, PhaseName.HANDOFF]


def record(epoch: int, name: PhaseName) -> PhaseRecord:
    started = 1000.0 + 10 * epoch
    return PhaseRecord(
        epoch=epoch,
        iteration=epoch // 4,
        name=name,
        weight_version=epoch // 4,
        world=1,
        members=tuple(range(MEMBERS)),
        started=started,
        deadline=started + 100,
    )


def ack(index: int, epoch: int, steps: tuple[str, ...] = ()) -> Ack:
    return Ack(
        epoch=epoch,
        index=index,
        incarnation="x",
        outcome=Outcome.DONE,
        seconds=8.0 - index,
        steps=tuple(Step(name=name, start=0.0, seconds=0.5) for name in steps),
        measured={"residualBytes": 2.0**30, "rolloutSeconds": 6.0, "checkpointSeconds": 1.0},
    )


def batch(iteration: int) -> BatchSummary:
    return BatchSummary(iteration, 2, 8, 100, 0.5, 0.5, 0.5, 12.5, 30, 1, {"Stop": 8}, {f"reason {iteration}": 2})


def run(spec: RLJobSpec, directory: Path, epochs: int) -> CollectorRegistry:
    """What an orchestrator exposes after so many phases, each of 10 s, acked by every member."""
    registry = CollectorRegistry()
    metrics, timeline = RunMetrics(spec, directory, registry), JsonLines(directory / "timeline.jsonl")
    steps = tuple(f"step {number}" for number in range(epochs)) + declared.SWITCH_STEPS
    for epoch in range(epochs):
        phase = record(epoch, PHASES[epoch % 4])
        acks = {} if phase.name is PhaseName.ROLLOUT else {index: ack(index, epoch, steps) for index in phase.members}
        metrics.entered(phase)
        lines = timeline_lines(phase, acks, phase.started + 10.0)
        for line in lines:
            timeline.write(line)
        metrics.left(phase, acks, lines, failed=False)
        metrics.learned({"rewardMean": 0.5, "evalAccuracy": None, "logprobDiffMax": 1e-3}, batch(epoch))
        metrics.progressed(Progress(last_switch=Switch(to_train_seconds=3.0)))
    return registry


def series(registry: CollectorRegistry) -> dict[str, set[str]]:
    """The series exposed, by the name of their declared metric."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        found[name] = {f"{sample.name}{sample.labels}" for sample in family.samples}
    return found


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_the_orchestrator_exposes_exactly_its_declared_metrics(tmp_path: Path) -> None:
    assert set(series(run(SPEC, tmp_path, 4))) == {metric.name for metric in declared.of(Process.ORCHESTRATOR)}


def test_the_sidecar_exposes_exactly_its_declared_metrics() -> None:
    registry = CollectorRegistry()
    MemberMetrics(registry)
    assert set(series(registry)) == {metric.name for metric in declared.of(Process.SIDECAR)}


def test_the_operator_exposes_exactly_its_declared_metrics() -> None:
    assert importlib.import_module("tandem_operator.metrics")
    exposed = {name for name in series(REGISTRY) if name.startswith("tandem_operator_")}
    assert exposed == {metric.name for metric in declared.of(Process.OPERATOR)}


def test_series_of_a_job_stay_within_the_declared_bound_however_long_it_runs(tmp_path: Path) -> None:
    registry = run(SPEC, tmp_path, 80)
    for metric in declared.of(Process.ORCHESTRATOR):
        assert len(series(registry)[metric.name]) <= metric.series(MEMBERS), metric.name
    assert declared.series_per_job(256) < 10_000


def test_every_step_of_a_switch_has_a_label() -> None:
    source = (ROOT / "sidecar/src/tandem_sidecar/switch.py").read_text()
    others = {"load", "warmup", "train", "checkpoint", "export"}
    assert set(re.findall(r'part\.step\("(\w+)"\)', source)) <= set(declared.SWITCH_STEPS) | others


def test_phases_acks_and_batches_become_numbers(tmp_path: Path) -> None:
    registry = run(SPEC, tmp_path, 4)
    assert value(registry, "tandem_phase", phase="Handoff") == 1
    assert value(registry, "tandem_phase", phase="Train") == 0
    assert value(registry, "tandem_phase_seconds_total", phase="Train") == 10
    assert value(registry, "tandem_member_phase_seconds", member="1", phase="Train") == 7
    assert value(registry, "tandem_engine_residual_bytes", member="0") == 2**30
    assert value(registry, "tandem_barrier_seconds_sum", phase="Handoff") == 10 - (8 - (MEMBERS - 1))
    assert value(registry, "tandem_switch_step_seconds_count", step="transfer") == 2 * MEMBERS
    assert value(registry, "tandem_switch_step_seconds_count", step="other") == 2 * MEMBERS * 5
    assert value(registry, "tandem_trained_tokens_total") == 400
    assert value(registry, "tandem_samples_total", outcome="unscored") == 8
    assert value(registry, "tandem_reward") == 0.5
    assert value(registry, "tandem_switch_seconds", direction="toTrain") == 3


def test_held_time_is_counted_on_by_the_next_orchestrator(tmp_path: Path) -> None:
    before = run(SPEC, tmp_path, 7)
    after = CollectorRegistry()
    RunMetrics(SPEC, tmp_path, after)
    for use in ("rollout", "tail", "train", "checkpoint", "release", "handoff", "barrier"):
        labels = {"member": "0", "use": use}
        booked = value(before, "tandem_accelerator_seconds_total", **labels)
        assert booked is not None
        assert booked > 0
        assert value(after, "tandem_accelerator_seconds_total", **labels) == pytest.approx(booked)
    assert value(after, "tandem_accelerator_busy_ratio", member="0") == pytest.approx((6 + 7 + 6) / 60)


def test_a_sidecar_counts_tokens_restarts_and_what_it_does() -> None:
    registry = CollectorRegistry()
    metrics = MemberMetrics(registry)
    metrics.engine_started(again=False)
    metrics.engine_gone()
    metrics.engine_started(again=True)
    metrics.works_on(PhaseName.START)
    segment = {"offset": 0, "tokens": (1, 2, 3), "logprobs": (0.0, 0.0, 0.0), "versions": (), "finish": Finish.STOP}
    metrics.generated(Segment(trajectory="1-0", **segment))
    assert value(registry, "tandem_engine_restarts_total") == 1
    assert value(registry, "tandem_engine_up") == 1
    assert value(registry, "tandem_tokens_total") == 3
    assert value(registry, "tandem_segments_total", finish="Stop") == 1
    assert declared.ACTIVITIES[int(value(registry, "tandem_member_activity") or 0)] == "Start"


def test_metrics_are_served_on_the_address_given_and_no_longer_after() -> None:
    registry = CollectorRegistry()
    counter(declared.TOKENS, registry).inc(5)
    port = free_port()
    with served("127.0.0.1", registry, port):
        body = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    assert "tandem_tokens_total 5.0" in body
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")


def test_a_metric_is_made_as_what_it_is_declared() -> None:
    with pytest.raises(TypeError, match="tandem_tokens_total is declared as a counter"):
        gauge(declared.TOKENS, CollectorRegistry())


def test_names_follow_prometheus_conventions() -> None:
    for metric in declared.ALL:
        assert re.fullmatch(r"tandem_[a-z0-9_]+", metric.name)
        assert (metric.kind is declared.Kind.COUNTER) == metric.name.endswith("_total"), metric.name
        base = metric.name.removesuffix("_total")
        for unit in (declared.Unit.SECONDS, declared.Unit.BYTES, declared.Unit.TOKENS, declared.Unit.RATIO):
            assert (metric.unit is unit) == (base.endswith(f"_{unit}") and "timestamp" not in base), metric.name


def test_the_page_of_metrics_is_up_to_date() -> None:
    assert PAGE.read_text() == page()
