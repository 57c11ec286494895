# SPDX-License-Identifier: Apache-2.0
"""CPU time that metrics and traces cost an orchestrator; run as ``python bench/metrics.py``.

Exit status 1 above 1 % of a short iteration, with as many pods as a job may have.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from tandem_api.environment import Job
from tandem_api.manifest import load
from tandem_api.messages.phases import Ack, Outcome, PhaseName, PhaseRecord, Progress, Step
from tandem_api.spec import RLJobSpec
from tandem_orchestrator.ledger import timeline_lines
from tandem_orchestrator.metrics import RunMetrics
from tandem_orchestrator.results import BatchSummary
from tandem_orchestrator.traces import Traces

MANIFEST = Path(__file__).parents[1] / "examples" / "chain-sum.yaml"
ITERATION_SECONDS = 30.0
"""A short iteration: progress is written once a second, and Prometheus scrapes once."""
MOST = 0.01
PHASES = (PhaseName.ROLLOUT, PhaseName.RELEASE, PhaseName.TRAIN, PhaseName.HANDOFF)
STEPS = ("drain", "sleep", "wakeWeights", "transfer", "finish", "verify", "wakeCache", "probe")


def phases(iteration: int, members: int) -> list[tuple[PhaseRecord, dict[int, Ack]]]:
    """The phases of one iteration and what the members ack."""
    made = []
    for place, name in enumerate(PHASES):
        epoch = len(PHASES) * iteration + place
        record = PhaseRecord(
            epoch=epoch,
            iteration=iteration,
            name=name,
            weight_version=iteration,
            world=1,
            members=tuple(range(members)),
            started=10.0 * epoch,
        )
        steps = tuple(Step(name=step, start=0.0, seconds=0.1) for step in STEPS)
        acks = {
            index: Ack(
                epoch=epoch, index=index, incarnation="", outcome=Outcome.DONE, seconds=1.0, steps=steps, measured={}
            )
            for index in record.members
            if name is not PhaseName.ROLLOUT
        }
        made.append((record, acks))
    return made


class Sink(SpanExporter):
    """Encodes spans as they would be sent, and sends them nowhere."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


def seconds_an_iteration(spec: RLJobSpec, members: int, iterations: int = 20) -> tuple[float, float]:
    """CPU time for one iteration: of the driver's thread, which phases wait for, and of all threads.

    All threads make and encode the spans as well. One scrape is included in both.
    """
    spec = spec.model_copy(update={"hybrid": spec.hybrid.model_copy(update={"replicas": members})})
    registry, driver, everything = CollectorRegistry(), 0.0, 0.0
    with tempfile.TemporaryDirectory() as directory:
        metrics = RunMetrics(spec, Path(directory), registry)
        job = Job("default", "bench", "0", spec)
        traces = Traces(job, Path(directory), BatchSpanProcessor(Sink(), max_queue_size=1 << 20))
        for iteration in range(iterations):
            booked = [
                (record, acks, timeline_lines(record, acks, record.started + 10.0))
                for record, acks in phases(iteration, members)
            ]
            batch = BatchSummary(iteration, 2, 8, 100, 0.5, 0.5, 0.5, 12.5, 30, 1, {}, {})
            began, began_all = time.thread_time(), time.process_time()
            for record, acks, lines in booked:
                metrics.entered(record)
                metrics.left(record, acks, lines, failed=False)
                traces.left(lines)
            metrics.learned({"rewardMean": 0.5}, batch)
            for _ in range(int(ITERATION_SECONDS)):
                metrics.progressed(Progress())
            generate_latest(registry)
            driver += time.thread_time() - began
            traces.flush()
            everything += time.process_time() - began_all
        traces.close()
    return driver / iterations, everything / iterations


def main() -> int:
    spec, worst = load(MANIFEST).spec, 0.0
    for members in (1, 2, 16, 256):
        driver, everything = seconds_an_iteration(spec, members)
        share = driver / ITERATION_SECONDS
        worst = max(worst, share)
        Console().print(
            f"{members:4} pods: {1000 * driver:.1f} ms of the driver, {share:.3%} of {ITERATION_SECONDS:.0f} s; "
            f"{1000 * everything:.1f} ms with the threads that make and send traces",
            soft_wrap=True,
        )
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
