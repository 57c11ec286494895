# SPDX-License-Identifier: Apache-2.0
"""Prompt sets: what is held out is never trained on, whatever its id; broken ones are refused before the start."""

import json
from pathlib import Path
from typing import Any

import pytest

from tandem_api.errors import UserError
from tandem_api.spec.data import DataSpec
from tandem_orchestrator.prompts import content, read_prompt_sets
from tandem_orchestrator.solutions import running_totals, shows_steps, solution

SUMS = {"task": "chain_sum", "config": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}


def write(path: Path, *records: dict[str, Any]) -> dict[str, str]:
    path.write_text("".join(json.dumps({"domain": "d", "answer": "1"} | record) + "\n" for record in records))
    return {"path": str(path)}


def read(**data: Any) -> Any:
    return read_prompt_sets(DataSpec.model_validate(data), seed=3)


def test_equal_prompts_are_kept_once_and_counted(tmp_path: Path):
    prompts = write(
        tmp_path / "p.jsonl",
        {"id": "a", "prompt": "one  two"},
        {"id": "b", "prompt": "one two\n"},
        {"id": "c", "prompt": "three"},
    )
    sets = read(prompts=[prompts])
    assert [record.id for record in sets.training] == ["a", "c"]
    assert sets.duplicates == 1


def test_a_file_with_a_held_out_prompt_is_refused_under_any_id(tmp_path: Path):
    prompts = write(tmp_path / "p.jsonl", {"id": "a", "prompt": "one"}, {"id": "b", "prompt": "two"})
    evaluation = write(tmp_path / "e.jsonl", {"id": "z", "prompt": " two "})
    with pytest.raises(UserError, match=r"p\.jsonl: record b: is a held-out prompt"):
        read(prompts=[prompts], evaluation=evaluation)
    sets = read(prompts=[prompts], evaluation=evaluation, skipInvalid=True)
    assert [record.id for record in sets.training] == ["a"]
    assert sets.skipped == 1


def test_made_training_and_warmup_sets_leave_out_made_held_out_problems():
    made = {"reasoningGym": {**SUMS, "size": 60}}
    sets = read(prompts=[made], evaluation={**made}, warmup={"reasoningGym": {**SUMS, "size": 60}})
    held_out = {content(record) for record in sets.evaluation}
    assert len(held_out) == 60
    assert len(sets.training) == 60
    assert not held_out & {content(record) for record in (*sets.training, *sets.warmup)}
    assert sets.held_out > 0


def test_a_made_problem_knows_its_task_and_the_same_seed_makes_it_again():
    first, again = (read(prompts=[{"reasoningGym": {**SUMS, "size": 5}}]).training for _ in range(2))
    assert first == again
    assert all(record.meta["source_dataset"] == "chain_sum" for record in first)


def test_an_unknown_task_is_refused_with_what_was_probably_meant():
    with pytest.raises(UserError, match="no task 'chain_sums'; did you mean chain_sum"):
        read(prompts=[{"reasoningGym": {"task": "chain_sums", "size": 5}}])


def test_settings_that_a_task_does_not_know_are_refused():
    with pytest.raises(UserError, match=r"spec\.data\.prompts\[0\]\.reasoningGym\.config: task chain_sum refuses it"):
        read(prompts=[{"reasoningGym": {**SUMS, "size": 5, "config": {"most_terms": 3}}}])


def test_every_broken_line_is_named_at_once(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a", "domain": "d", "prompt": "x"}\nnot json\n{"id": "b", "domain": "d"}\n')
    with pytest.raises(UserError) as caught:
        read(prompts=[{"path": str(path)}])
    assert [problem.where for problem in caught.value.problems] == [f"{path}:2", f"{path}:3"]


def test_broken_lines_are_left_out_and_counted_where_the_job_says_so(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a", "domain": "d", "prompt": "x"}\nnot json\n')
    sets = read(prompts=[{"path": str(path)}], skipInvalid=True)
    assert (len(sets.training), sets.skipped) == (1, 1)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"spec\.data\.prompts\[0\]\.path: cannot read .*none\.jsonl: No such file"):
        read(prompts=[{"path": str(tmp_path / "none.jsonl")}])


def test_an_id_may_not_stand_in_two_sources(tmp_path: Path):
    first = write(tmp_path / "1.jsonl", {"id": "a", "prompt": "one"})
    second = write(tmp_path / "2.jsonl", {"id": "a", "prompt": "two"})
    with pytest.raises(UserError, match="id 'a' stands in another source too"):
        read(prompts=[first, second])


def test_a_share_of_the_made_solutions_shows_its_working():
    warmup = {"reasoningGym": {**SUMS, "size": 200}, "stepsFraction": 0.5}
    rows = read(prompts=[{"reasoningGym": {**SUMS, "size": 5}}], warmup=warmup).warmup
    working = [row for row in rows if row.response == solution(row.answer, row.meta["expression"], shows_steps=True)]
    assert 60 < len(working) < 140
    assert all(row.response == f"={row.answer}" for row in rows if row not in working)
    assert all(shows_steps(row.id, 0.5) for row in working)


@pytest.mark.parametrize(
    ("expression", "text"),
    [("4 + 3 - 2", "4 + 3 =7 - 2 =5"), ("1 - 9", "1 - 9 =-8"), ("-3 + 10", "-3 + 10 =7"), ("7", "7")],
)
def test_working_states_the_total_after_each_term(expression: str, text: str):
    assert running_totals(expression) == text


def test_an_expression_that_is_no_sum_is_answered_without_working():
    assert solution("6", "2 * 3", shows_steps=True) == "=6"
