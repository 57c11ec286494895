# SPDX-License-Identifier: Apache-2.0
"""What metrics cost an orchestrator; run as ``python bench/metrics.py``. Exit status 1 above 1 % of an iteration."""

import sys
import tempfile
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from tandem_api.manifest import load
from tandem_api.messages.phases import Ack, Outcome, PhaseName, PhaseRecord, Progress, Step
from tandem_api.spec import RLJobSpec
from tandem_orchestrator.ledger import timeline_lines
from tandem_orchestrator.metrics import RunMetrics
from tandem_orchestrator.results import BatchSummary

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


def seconds_an_iteration(spec: RLJobSpec, members: int, iterations: int = 20) -> float:
    """What the listener takes for one iteration, one scrape included."""
    spec = spec.model_copy(update={"hybrid": spec.hybrid.model_copy(update={"replicas": members})})
    registry, spent = CollectorRegistry(), 0.0
    with tempfile.TemporaryDirectory() as directory:
        metrics = RunMetrics(spec, Path(directory), registry)
        for iteration in range(iterations):
            booked = [
                (record, acks, timeline_lines(record, acks, record.started + 10.0))
                for record, acks in phases(iteration, members)
            ]
            batch = BatchSummary(iteration, 2, 8, 100, 0.5, 0.5, 0.5, 12.5, 30, 1, {}, {})
            began = time.process_time()
            for record, acks, lines in booked:
                metrics.entered(record)
                metrics.left(record, acks, lines, failed=False)
            metrics.learned({"rewardMean": 0.5}, batch)
            for _ in range(int(ITERATION_SECONDS)):
                metrics.progressed(Progress())
            generate_latest(registry)
            spent += time.process_time() - began
    return spent / iterations


def main() -> int:
    spec, worst = load(MANIFEST).spec, 0.0
    for members in (1, 2, 16, 256):
        seconds = seconds_an_iteration(spec, members)
        worst = max(worst, seconds / ITERATION_SECONDS)
        share = f"{seconds / ITERATION_SECONDS:.3%}"
        Console().print(f"{members:4} pods: {1000 * seconds:.1f} ms, {share} of {ITERATION_SECONDS:.0f} s")
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
