# SPDX-License-Identifier: Apache-2.0
"""A run's phases as OpenTelemetry traces: one trace an iteration, a span for each phase, pod and step.

docs/tracing.md is for users. The acks carry the times of every member's steps, so the orchestrator alone makes all
spans, after the fact: no context travels between processes, and members need no way to a collector.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from tandem_api.environment import Job
from tandem_api.messages.phases import PhaseName
from tandem_api.utilisation import ROLLOUT_SECONDS

log = structlog.get_logger()

type Line = Mapping[str, Any]

_OPENS = (PhaseName.START, PhaseName.RECOVER, PhaseName.ROLLOUT)
_ENDS = (PhaseName.HANDOFF, PhaseName.SUSPENDED, PhaseName.SUCCEEDED)
_QUEUE_PER_MEMBER = 32
"""Spans of one pod that may wait to be sent; a Handoff makes about ten at once."""


class Traces:
    """Makes the spans of each phase when it has ended, in a thread of its own: 256 pods make thousands.

    A trace begins with Start, Recover or Rollout and ends with Handoff, Suspended, Succeeded or a phase that failed.
    Ids are digests of what a phase record says, so an orchestrator that takes over half-way goes on with the trace of
    the one before, and nothing is sent twice.
    """

    def __init__(self, job: Job, state_dir: Path, processor: SpanProcessor) -> None:
        self._uid = job.uid
        self._ids = _GivenIds()
        self._provider = TracerProvider(resource=_resource(job), id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("tandem")
        self._maker = ThreadPoolExecutor(1, "traces")
        self._opened: Line | None = None
        self._rollout: Line | None = None
        self._go_on(state_dir / "timeline.jsonl")

    def left(self, lines: Sequence[Line], failure: str | None = None) -> None:
        """A phase has ended; ``lines`` are what the timeline holds of it, the phase's own first. Returns at once."""
        self._maker.submit(self._make, lines, failure).add_done_callback(_complain)

    def flush(self) -> None:
        """Send now what waits to be made or sent."""
        self._maker.submit(self._provider.force_flush).result()

    def close(self) -> None:
        """Send what waits to be sent; gives up after the exporter's timeout."""
        self._maker.shutdown()
        self._provider.shutdown()

    def _make(self, lines: Sequence[Line], failure: str | None) -> None:
        phase, *parts = lines
        self._enter(phase)
        assert self._opened is not None
        trace, root = self._trace_id(self._opened), self._span_id(self._opened, "iteration")
        self._rolled_out(trace, parts)
        span = self._span_id(phase, "phase")
        self._span(phase["phase"], trace, span, root, phase["start"], _end(phase), _about(phase, parts), failure)
        for part in parts:
            self._part(trace, phase, part)
        if phase["phase"] in _ENDS or failure is not None:
            opened = self._opened
            name = "iteration" if opened["phase"] == PhaseName.ROLLOUT else opened["phase"].lower()
            attributes = {"tandem.iteration": opened["iteration"]}
            self._span(name, trace, root, None, opened["start"], _end(phase), attributes, failure)
        self._leave(phase, failure)

    def _enter(self, phase: Line) -> None:
        if self._opened is None or phase["phase"] in _OPENS:
            self._opened, self._rollout = phase, None

    def _leave(self, phase: Line, failure: str | None) -> None:
        if phase["phase"] == PhaseName.ROLLOUT:
            self._rollout = phase
        if phase["phase"] in _ENDS or failure is not None:
            self._opened = None

    def _go_on(self, timeline: Path) -> None:
        """The trace in which an earlier orchestrator stopped. A failed phase is known by the Recover after it."""
        if not timeline.exists():
            return
        lines: Iterable[Line] = map(json.loads, timeline.read_bytes().splitlines())
        for _, (phase, *_parts) in groupby(lines, key=lambda line: line["epoch"]):
            self._enter(phase)
            self._leave(phase, None)

    def _rolled_out(self, trace: int, parts: Sequence[Line]) -> None:
        """How long each engine was busy is told with the phase after the Rollout."""
        rollout, self._rollout = self._rollout, None
        if rollout is None:
            return
        for part in parts:
            busy = part["measured"].get(ROLLOUT_SECONDS)
            if busy is not None:
                name, member = f"pod {part['index']}", {"tandem.member": part["index"]}
                end = float(rollout["start"]) + min(float(busy), float(rollout["seconds"]))
                span, parent = self._span_id(rollout, name), self._span_id(rollout, "phase")
                self._span(name, trace, span, parent, rollout["start"], end, member)

    def _part(self, trace: int, phase: Line, part: Line) -> None:
        name = f"pod {part['index']}"
        span, member = self._span_id(phase, name), {"tandem.member": part["index"]}
        self._span(name, trace, span, self._span_id(phase, "phase"), part["start"], _end(part), member)
        for place, step in enumerate(part["steps"]):
            own = self._span_id(phase, f"{name} {place}")
            self._span(step["name"], trace, own, span, step["start"], _end(step), member)

    def _span(
        self,
        name: str,
        trace: int,
        span: int,
        parent: int | None,
        start: float,
        end: float,
        attributes: Mapping[str, Any],
        failure: str | None = None,
    ) -> None:
        above = NonRecordingSpan(SpanContext(trace, parent, False, TraceFlags(TraceFlags.SAMPLED))) if parent else None
        self._ids.trace, self._ids.span = trace, span
        context = set_span_in_context(above) if above else None
        made = self._tracer.start_span(name, context, attributes=attributes, start_time=_nanoseconds(start))
        if failure is not None:
            made.set_status(Status(StatusCode.ERROR, failure))
        made.end(_nanoseconds(max(start, end)))

    def _trace_id(self, opened: Line) -> int:
        return self._digest(opened, "trace", 16)

    def _span_id(self, phase: Line, what: str) -> int:
        return self._digest(phase, what, 8)

    def _digest(self, phase: Line, what: str, size: int) -> int:
        # The start, because epochs begin anew where a run is resumed with an empty etcd.
        text = f"{self._uid}/{phase['iteration']}/{phase['epoch']}/{phase['start']}/{what}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest())


class _GivenIds(IdGenerator):
    """Ids that are set before each span."""

    trace = 0
    span = 0

    def generate_trace_id(self) -> int:
        return self.trace

    def generate_span_id(self) -> int:
        return self.span


def collected(job: Job, state_dir: Path) -> Traces:
    """Traces that go to the collector which the standard ``OTEL_EXPORTER_OTLP_…`` variables name, over HTTP."""
    room = 2048 + _QUEUE_PER_MEMBER * job.spec.hybrid.replicas
    return Traces(job, state_dir, BatchSpanProcessor(OTLPSpanExporter(), max_queue_size=room))


def _complain(made: "Future[None]") -> None:
    """Traces must not fail a run."""
    if (error := made.exception()) is not None:
        log.error("a phase is missing in the traces", error=repr(error))


def _resource(job: Job) -> Resource:
    attributes = {"k8s.namespace.name": job.namespace, "tandem.job.name": job.name, "tandem.job.uid": job.uid}
    named = "OTEL_SERVICE_NAME" in os.environ
    return Resource.create(attributes if named else {"service.name": "tandem", **attributes})


def _about(phase: Line, parts: Sequence[Line]) -> dict[str, int | float]:
    """Attributes of a phase: whom the others waited for, and how long the first of them did."""
    about: dict[str, int | float] = {"tandem.iteration": phase["iteration"], "tandem.epoch": phase["epoch"]}
    if parts:
        by_seconds = sorted(parts, key=lambda part: float(part["seconds"]))
        about["tandem.slowest_member"] = by_seconds[-1]["index"]
        about["tandem.barrier_seconds"] = max(0.0, float(phase["seconds"]) - float(by_seconds[0]["seconds"]))
    return about


def _end(line: Line) -> float:
    return float(line["start"]) + max(0.0, float(line["seconds"]))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
