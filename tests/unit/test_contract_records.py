# SPDX-License-Identifier: Apache-2.0
"""Prompt sets are read line by line, and each bad line is told with its number and the reason."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_api.errors import Problem
from tandem_api.gym_tasks import task_names
from tandem_api.records import Record, parse_record, read_records

GOOD = {"id": "a", "domain": "math", "prompt": "1+1="}


def test_records_and_problems_come_in_the_order_of_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [
        json.dumps(GOOD),
        '{"id": "b", "domain": "math"',
        "",
        json.dumps(GOOD | {"id": "c", "answer": "2", "difficulty": 1, "meta": {"x": [1]}}),
        json.dumps(GOOD | {"prompt": "again"}),
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())

    found = list(read_records(path))

    assert [item.id if isinstance(item, Record) else item.where for item in found] == [
        "a",
        f"{path}:2",
        "c",
        f"{path}:5",
    ]
    assert found[1] == Problem(f"{path}:2", "is not JSON: EOF while parsing an object at column 28")
    assert found[3] == Problem(f"{path}:5", "id 'a' is that of line 1 too; ids are unique")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1]", "must be a JSON object; found [1]"),
        (b'{"id": "\xff"}', "is not JSON"),
        ({**GOOD, "id": 7}, "id must be a string; found 7"),
        ({**GOOD, "id": ""}, "id must have at least 1 character"),
        ({"id": "a", "prompt": "x"}, "domain is required: Kind of problem"),
        ({**GOOD, "anwser": "2"}, "anwser unknown field (did you mean answer?)"),
        ({"id": "a", "domain": "math"}, "set exactly one of prompt and messages"),
        ({**GOOD, "messages": [{"role": "user", "content": "x"}]}, "set exactly one of prompt and messages"),
        ({"id": "a", "domain": "m", "messages": [{"role": "usr", "content": "x"}]}, "messages[0].role must be one of"),
        ({**GOOD, "tests": [{"input": "1"}]}, "tests[0].output is required"),
        ({**GOOD, "difficulty": float("nan")}, "difficulty must be a finite number"),
    ],
)
def test_a_bad_line_is_told_with_its_reason(line: object, says: str) -> None:
    text = line if isinstance(line, str | bytes) else json.dumps(line)

    found = parse_record(text, "prompts.jsonl:1")

    assert isinstance(found, Problem)
    assert found.where == "prompts.jsonl:1"
    assert found.message.startswith(says)


def test_a_warm_up_set_has_responses() -> None:
    line = json.dumps(GOOD)

    assert isinstance(parse_record(line, "x:1"), Record)
    assert parse_record(line, "x:1", response_required=True) == Problem("x:1", "response is required in a warm-up set")
    assert isinstance(parse_record(json.dumps(GOOD | {"response": "2"}), "x:1", response_required=True), Record)


texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=50)


@given(st.builds(Record, id=texts, domain=texts, prompt=texts, answer=st.none() | texts, response=st.none() | texts))
def test_a_record_survives_being_written_and_read(record: Record) -> None:
    assert parse_record(record.wire(), "x:1") == record


def test_the_tasks_found_are_those_that_reasoning_gym_registers() -> None:
    import reasoning_gym  # noqa: F401 - registers them
    from reasoning_gym.factory import DATASETS

    assert task_names() == set(DATASETS)
