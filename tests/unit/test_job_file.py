# SPDX-License-Identifier: Apache-2.0
"""A process takes from its job's file what may change while it runs, and nothing else. Its variables are checked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from orchestrator_world import make_job

from tandem_api.environment import COMPLETION_INDEX, Environment, Job
from tandem_api.errors import UserError


@pytest.fixture
def job(tmp_path: Path) -> Job:
    file = tmp_path / "job.json"
    file.write_text(make_job(tmp_path / "prompts.jsonl").dump())
    return Job.read(file)


def rewrite(job: Job, **parts: Any) -> Job:
    assert job.file is not None
    job.file.write_text(make_job(job.file.with_name("prompts.jsonl"), **parts).dump())
    return job.refreshed()


def test_what_may_change_is_taken(job: Job) -> None:
    now = rewrite(job, iterations=9, checkpoint={"keep": 7}, schedule={"phaseDeadlines": {"train": "3h"}}).spec
    assert (now.iterations, now.checkpoint.keep, now.schedule.phase_deadlines.train) == (9, 7, 10800.0)


def test_what_is_fixed_stays_and_iterations_do_not_shrink(job: Job) -> None:
    assert rewrite(job, iterations=1, seed=8).spec == job.spec


@pytest.mark.parametrize("text", ["", "{", '{"namespace": "n"}'])
def test_a_file_that_cannot_be_read_changes_nothing(job: Job, text: str) -> None:
    assert job.file is not None
    job.file.write_text(text)
    assert job.refreshed() is job


def test_the_file_of_another_job_of_the_same_name_changes_nothing(job: Job) -> None:
    assert job.file is not None
    job.file.write_text(replace(make_job(job.file, iterations=9), uid="another").dump())
    assert job.refreshed() is job


def test_a_variable_that_is_no_number_is_named_with_its_value() -> None:
    with pytest.raises(UserError, match="JOB_COMPLETION_INDEX: must be a whole number; found 'first'"):
        Environment({COMPLETION_INDEX: "first"}).number(COMPLETION_INDEX)
