# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that a user wants is saved once, at the end of the first Train that covers it."""

import pytest
from operator_fixture import rljob

from tandem_api.messages.phases import DesiredState, PhaseName
from tandem_api.rljob import CHECKPOINT_ANNOTATION, RLJobObject
from tandem_operator import jobs
from tandem_orchestrator.driver import saves
from tandem_orchestrator.run import ResumePoint
from tandem_phases.transitions import Next

SPEC = rljob(iterations=100, checkpoint={"everyIterations": 50}).spec
NOTHING = ResumePoint()


def train(iteration: int, name: PhaseName = PhaseName.TRAIN) -> Next:
    return Next(name, iteration, iteration, 1)


def annotated(text: str) -> RLJobObject:
    job = rljob()
    return job.model_copy(
        update={"metadata": job.metadata.model_copy(update={"annotations": {CHECKPOINT_ANNOTATION: text}})}
    )


def test_the_first_train_that_covers_the_wanted_iterations_saves() -> None:
    assert next(iteration for iteration in range(10) if saves(train(iteration), SPEC, NOTHING, 7)) == 6


def test_nothing_is_saved_again_once_a_durable_checkpoint_covers_the_wish() -> None:
    assert not saves(train(8), SPEC, ResumePoint(7, "iter-0000007"), 7)


def test_a_rollback_behind_the_wish_saves_it_anew() -> None:
    assert saves(train(6), SPEC, ResumePoint(5, "iter-0000005"), 7)


def test_a_wish_does_not_make_other_phases_save() -> None:
    assert not any(saves(train(6, name), SPEC, NOTHING, 7) for name in (PhaseName.RELEASE, PhaseName.HANDOFF))


def test_without_a_wish_only_every_so_many_iterations_and_the_last_save() -> None:
    assert [iteration for iteration in range(100) if saves(train(iteration), SPEC, NOTHING, None)] == [49, 99]


@pytest.mark.parametrize(
    ("text", "wanted"), [("7", 7), ("0", 0), ("", None), ("soon", None), ("-1", None), ("٣", None)]
)
def test_the_annotation_reaches_the_orchestrator_if_it_is_a_number(text: str, wanted: int | None) -> None:
    assert jobs.desired(annotated(text), DesiredState.RUNNING).checkpoint == wanted
