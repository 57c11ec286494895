# SPDX-License-Identifier: Apache-2.0
"""The next phase, as phases.md says it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_api.messages.phases import DesiredState, PhaseName, PhaseRecord
from tandem_phases.transitions import Facts, first_phase, next_phase

P = PhaseName


def record(name: PhaseName, iteration: int = 0, checkpoint: str | None = None) -> PhaseRecord:
    return PhaseRecord(
        epoch=1,
        iteration=iteration,
        name=name,
        weight_version=iteration,
        world=1,
        members=(0,),
        started=0.0,
        checkpoint=checkpoint,
    )


def run(facts: Facts, phase: PhaseRecord, steps: int) -> list[tuple[PhaseName, int, int]]:
    """Phases that follow when every phase ends well and every rollout fills its batch."""
    seen = []
    for _ in range(steps):
        done = phase.iteration >= facts.iterations
        following = next_phase(phase, replace(facts, batch_ready=phase.name in (P.ROLLOUT, P.RELEASE), evaluated=done))
        phase = record(following.name, following.iteration)
        seen.append((phase.name, phase.iteration, phase.weight_version))
        if phase.name.final:
            break
    return seen


def test_a_run_of_two_iterations_goes_through_every_phase_in_order() -> None:
    names = [name for name, _, _ in run(Facts(iterations=2, warmup=True), record(P.START), 20)]
    iteration = [P.ROLLOUT, P.RELEASE, P.TRAIN, P.HANDOFF]
    assert names == [P.WARMUP, P.HANDOFF, *iteration, *iteration, P.ROLLOUT, P.SUCCEEDED]


def test_the_weight_version_grows_by_one_with_each_train() -> None:
    seen = run(Facts(iterations=3), record(P.START), 20)
    versions = [version for name, _, version in seen if name is P.ROLLOUT]
    assert versions == [0, 1, 2, 3]


def test_a_start_from_a_checkpoint_does_not_warm_up_again() -> None:
    facts = Facts(iterations=3, warmup=True, durable_iteration=0, checkpoint="iter-0000000")
    following = next_phase(record(P.START, checkpoint=first_phase(facts).checkpoint), facts)
    assert following.name is P.HANDOFF


def test_a_batch_that_survived_is_trained_again_and_not_generated_again() -> None:
    facts = Facts(iterations=9, batch_ready=True, durable_iteration=4, checkpoint="iter-0000004")
    following = next_phase(record(P.RECOVER, 4, "iter-0000004"), facts)
    assert (following.name, following.iteration) == (P.TRAIN, 4)


@pytest.mark.parametrize("name", [P.START, P.WARMUP, P.ROLLOUT, P.RELEASE, P.TRAIN, P.HANDOFF])
def test_a_failure_in_any_phase_recovers_from_the_newest_checkpoint_in_a_new_world(name: PhaseName) -> None:
    facts = Facts(iterations=9, failure="member 0 is gone", durable_iteration=2, checkpoint="iter-0000002")
    following = next_phase(record(name, 5), facts)
    assert (following.name, following.iteration, following.world) == (P.RECOVER, 2, 2)
    assert following.checkpoint == "iter-0000002"


def test_a_failure_without_restarts_left_fails_the_job_and_says_why() -> None:
    following = next_phase(record(P.TRAIN, 5), Facts(iterations=9, failure="loss is NaN", restarts_left=False))
    assert following.name is P.FAILED
    assert "loss is NaN" in str(following.reason)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (P.ROLLOUT, P.RELEASE),
        (P.RELEASE, P.SUSPENDED),
        (P.TRAIN, P.SUSPENDED),
        (P.HANDOFF, P.RELEASE),
        (P.WARMUP, P.SUSPENDED),
    ],
)
def test_suspending_waits_until_the_trainer_holds_the_device(name: PhaseName, expected: PhaseName) -> None:
    assert next_phase(record(name, 1), Facts(iterations=9, desired=DesiredState.SUSPENDED)).name is expected


@given(
    name=st.sampled_from([name for name in PhaseName if not name.final]),
    iteration=st.integers(0, 5),
    facts=st.builds(
        Facts,
        iterations=st.just(5),
        desired=st.sampled_from(DesiredState),
        warmup=st.booleans(),
        batch_ready=st.booleans(),
        evaluated=st.booleans(),
        failure=st.none() | st.just("it broke"),
        restarts_left=st.booleans(),
    ),
)
def test_the_trainer_gets_the_device_only_after_a_release_or_a_start(
    name: PhaseName, iteration: int, facts: Facts
) -> None:
    following = next_phase(record(name, iteration), facts)
    if following.name in (P.TRAIN, P.WARMUP):
        assert name in (P.RELEASE, P.START, P.RECOVER)
