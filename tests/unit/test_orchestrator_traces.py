# SPDX-License-Identifier: Apache-2.0
"""What a collector gets of a run: one trace an iteration, and in it whom the others waited for."""

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from otlp_receiver import Receiver, Span, receiving

from tandem_api.environment import Environment, Job
from tandem_api.manifest import load
from tandem_orchestrator.traces import Traces, collected

ROOT = Path(__file__).parents[2]
JOB = Job("default", "sums", "7d4c", load(ROOT / "tests" / "manifests" / "whole.yaml").spec)
Lines = list[dict[str, Any]]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as made:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.endpoint)
        yield made


@pytest.fixture(scope="module")
def phases() -> list[Lines]:
    """A real run's timeline, phase by phase: two pods, three iterations."""
    text = (ROOT / "tests" / "timelines" / "two-pods.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [list(phase) for _, phase in groupby(lines, key=lambda line: line["epoch"])]


def send(traces: Traces, phases: list[Lines], failure: str | None = None) -> None:
    for lines in phases:
        traces.left(lines, failure if lines is phases[-1] else None)
    traces.close()


def roots(receiver: Receiver) -> list[Span]:
    return [span for span in receiver.spans if not span.parent]


def test_each_iteration_is_one_trace_of_phases_pods_and_steps(
    receiver: Receiver, phases: list[Lines], tmp_path: Path
) -> None:
    send(collected(JOB, tmp_path), phases)
    iterations = [span for span in roots(receiver) if span.name == "iteration"]
    trained = {lines[0]["iteration"] for lines in phases if lines[0]["phase"] == "Train"}
    assert {span.attributes["tandem.iteration"] for span in iterations} >= trained
    first = iterations[0]
    inside = {span.id: span for span in receiver.spans if span.trace == first.trace}
    below = {span.name for span in inside.values() if span.parent == first.id}
    assert below == {"Rollout", "Release", "Train", "Handoff"}
    handoff = next(span for span in inside.values() if span.name == "Handoff")
    pods = [span for span in inside.values() if span.parent == handoff.id]
    assert {(span.name, span.attributes["tandem.member"]) for span in pods} == {("pod 0", 0), ("pod 1", 1)}
    steps = {span.name for span in inside.values() if span.parent == pods[0].id}
    assert {"transfer", "verify", "probe"} <= steps


def test_the_pod_that_the_others_waited_for_is_the_longest_span_and_is_named(
    receiver: Receiver, phases: list[Lines], tmp_path: Path
) -> None:
    send(collected(JOB, tmp_path), phases)
    told = [span for span in receiver.spans if "tandem.slowest_member" in span.attributes]
    assert told
    for phase in told:
        pods = [span for span in receiver.spans if span.parent == phase.id and span.trace == phase.trace]
        slowest = max(pods, key=lambda span: span.end - span.start)
        assert slowest.attributes["tandem.member"] == phase.attributes["tandem.slowest_member"]


def test_a_rollout_shows_how_long_each_engine_was_busy(receiver: Receiver, phases: list[Lines], tmp_path: Path) -> None:
    send(collected(JOB, tmp_path), phases)
    rollout = next(span for span in receiver.spans if span.name == "Rollout")
    pods = [span for span in receiver.spans if span.parent == rollout.id]
    release = next(lines for lines in phases if lines[0]["phase"] == "Release" and lines[0]["iteration"] == 0)
    assert {span.attributes["tandem.member"] for span in pods} == {0, 1}
    busy = {part["index"]: part["measured"]["rolloutSeconds"] for part in release[1:] if part["measured"]}
    for span in pods:
        assert span.end <= rollout.end + 1e-6
        assert span.end - span.start <= busy.get(int(span.attributes["tandem.member"]), 1e9) + 1e-6


def test_an_orchestrator_that_takes_over_goes_on_with_the_trace_and_repeats_nothing(
    receiver: Receiver, phases: list[Lines], tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    send(collected(JOB, whole), phases)
    expected = {(span.trace, span.id, span.parent, span.name) for span in receiver.spans}
    receiver.spans.clear()
    for half in range(1, len(phases)):
        state = tmp_path / str(half)
        state.mkdir()
        send(collected(JOB, state), phases[:half])
        (state / "timeline.jsonl").write_text("".join(json.dumps(line) + "\n" for p in phases[:half] for line in p))
        send(collected(JOB, state), phases[half:])
        assert len({span.id for span in receiver.spans}) == len(receiver.spans)
        assert {(span.trace, span.id, span.parent, span.name) for span in receiver.spans} == expected
        receiver.spans.clear()


def test_a_phase_that_failed_ends_its_trace_with_the_reason(
    receiver: Receiver, phases: list[Lines], tmp_path: Path
) -> None:
    place = next(place for place, lines in enumerate(phases) if lines[0]["phase"] == "Train")
    send(collected(JOB, tmp_path), phases[: place + 1], failure="member 1 was lost during Train")
    train = next(span for span in receiver.spans if span.name == "Train")
    root = next(span for span in receiver.spans if span.id == train.parent)
    assert train.error == root.error == "member 1 was lost during Train"


def test_sampling_keeps_or_drops_whole_traces(
    receiver: Receiver, phases: list[Lines], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(collected(JOB, tmp_path), phases)
    whole = {(span.trace, span.id) for span in receiver.spans}
    receiver.spans.clear()
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    send(collected(JOB, tmp_path), phases)
    kept = {span.trace for span in receiver.spans}
    assert 0 < len(kept) < len({trace for trace, _ in whole})
    assert {(span.trace, span.id) for span in receiver.spans} == {span for span in whole if span[0] in kept}


def test_spans_say_which_job_they_are_of(receiver: Receiver, phases: list[Lines], tmp_path: Path) -> None:
    send(collected(JOB, tmp_path), phases[:1])
    told = receiver.spans[0].resource
    assert (told["service.name"], told["k8s.namespace.name"], told["tandem.job.name"]) == ("tandem", "default", "sums")


def test_a_collector_that_is_away_costs_no_phase(
    phases: list[Lines], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    send(collected(JOB, tmp_path), phases)


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_traces_are_off_unless_a_collector_is_named(variables: dict[str, str], wanted: bool) -> None:
    assert Environment(variables).collector_named is wanted


def test_without_a_collector_opentelemetry_is_not_even_imported() -> None:
    code = "import sys, tandem_orchestrator.main; sys.exit('opentelemetry.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
