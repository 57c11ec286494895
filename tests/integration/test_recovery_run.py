# SPDX-License-Identifier: Apache-2.0
"""One run of the real stack that meets a fault in every phase, one after the other, and loses nothing by it."""

import asyncio
from pathlib import Path

import pytest
import yaml
from broken_run import BrokenRun, broken_run
from trainer_world import Orchestrator, running_world

from tandem_api.environment import Job
from tandem_api.manifest import load
from tandem_api.messages.phases import PhaseName
from tandem_api.messages.trainer import FinishRun, Load, TrainStep
from tandem_api.status import JobPhase, RLJobStatus
from tandem_cli.chaos.plan import Component, Fault, Kind
from tandem_orchestrator.buffer import Buffer
from tandem_orchestrator.corpus import Corpus
from tandem_orchestrator.serving import build_body

P = PhaseName
ITERATIONS = 8
FAULTS = (
    Fault(Kind.KILL, Component.ENGINE, P.ROLLOUT, after=0.3),
    Fault(Kind.KILL, Component.TRAINER, P.TRAIN),
    Fault(Kind.KILL, Component.ORCHESTRATOR, P.HANDOFF),
    Fault(Kind.LOSE_LEASE, Component.SIDECAR, P.ROLLOUT, after=0.3),
    Fault(Kind.KILL, Component.ETCD, P.TRAIN),
    Fault(Kind.STOP, Component.SIDECAR, P.ROLLOUT, seconds=15.0),
    Fault(Kind.LOSE_LEASE, Component.ORCHESTRATOR, P.RELEASE),
    Fault(Kind.KILL, Component.TRAINER, P.HANDOFF),
    Fault(Kind.CORRUPT_SEGMENT, Component.TRAINER, P.HANDOFF),
    Fault(Kind.KILL, Component.POD, P.TRAIN),
)
UNMOVED = (Component.ORCHESTRATOR, Component.ETCD)
"""Without which the pods go on in the world that they have."""
pytestmark = [pytest.mark.timeout(1500), pytest.mark.soak]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> BrokenRun:
    return broken_run(tmp_path_factory.mktemp("recovery"), FAULTS, {"spec.iterations": ITERATIONS})


def test_the_run_succeeds(run: BrokenRun) -> None:
    assert run.status == 0
    status = RLJobStatus.model_validate_json((run.out / "status.json").read_text())
    assert (status.phase, status.iteration) == (JobPhase.SUCCEEDED, ITERATIONS)


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[str(fault) for fault in FAULTS])
def test_the_job_works_again_after(run: BrokenRun, number: int) -> None:
    recovery = run.recoveries[number]
    assert recovery.seconds is not None, recovery
    assert recovery.new_world is (recovery.fault.component not in UNMOVED), recovery


def test_weights_that_were_damaged_on_their_way_are_refused_by_the_tensors_name(run: BrokenRun) -> None:
    run.assert_damage_refused()


def test_nothing_that_was_on_disk_is_lost_or_changed(run: BrokenRun) -> None:
    run.assert_nothing_lost()


def test_every_iteration_is_trained_once_and_no_trajectory_twice(run: BrokenRun) -> None:
    run.assert_trained_once()


def test_the_weights_are_those_of_a_run_that_nothing_happened_to_bit_for_bit(run: BrokenRun, tmp_path: Path) -> None:
    spec = yaml.safe_load((run.out / "job.yaml").read_text())["spec"]
    orchestrator = Orchestrator()
    orchestrator.bodies |= asyncio.run(bodies(run))
    with orchestrator.serving(), running_world(spec, orchestrator, tmp_path / "checkpoints") as world:
        world.ask(Load(epoch=1))
        for iteration in range(ITERATIONS):
            reply = world.ask(TrainStep(epoch=2 + iteration, iteration=iteration, weight_version=iteration))
            assert reply.error is None
        undisturbed = world.ask(FinishRun(epoch=100, export=True)).path
    assert undisturbed is not None
    weights = sorted(Path(undisturbed).glob("*.safetensors"))
    assert weights
    for file in weights:
        assert file.read_bytes() == (run.out / "checkpoints" / "hf" / file.name).read_bytes(), file.name


async def bodies(run: BrokenRun) -> dict[str, bytes]:
    """The batches that the run trained on, by route."""
    job = load(run.file)
    corpus = Corpus.read(Job("default", job.metadata.name, "uid", job.spec), run.out)
    buffer = Buffer(run.out / "buffer.sqlite")
    try:
        found = {}
        for iteration in range(ITERATIONS):
            row = await buffer.batch(iteration)
            assert row is not None
            body = await build_body(iteration, row.members, buffer, corpus)
            assert body.digest == row.digest
            found[f"/v1/batches/{iteration}"] = body.content
        return found
    finally:
        await asyncio.to_thread(buffer.close)
