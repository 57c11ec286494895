# SPDX-License-Identifier: Apache-2.0
"""YAML means what it means to kubectl (go-yaml v2 and Go's encoding/json), not what it means to PyYAML."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tandem_api.yaml_lines import documents


def value_of(text: str) -> Any:
    (document,) = documents(f"x: {text}", "test")
    assert not document.problems
    return document.value["x"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1E3", 1000),
        ("40.0", 40),
        (".5", 0.5),
        ("010", 8),
        ("0o10", 8),
        ("0x1F", 31),
        ("-0b11", -3),
        ("1_000", 1000),
        ("09", 9),
        ("1:30", "1:30"),
        ("2026-11-22", "2026-11-22"),
        ("2026-11-22T04:00:00Z", "2026-11-22T04:00:00Z"),
        ("1e400", "1e400"),
        ("4Gi", "4Gi"),
        ("yes", True),
        ("off", False),
        ("~", None),
        ("", None),
        ("nil", "nil"),
        ("'yes'", "yes"),
        ('"1"', "1"),
        ("!!str 1", "1"),
    ],
)
def test_a_scalar_means_what_it_means_to_kubectl(text: str, value: Any) -> None:
    found = value_of(text)

    assert found == value
    assert type(found) is type(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(exclude_categories=("C",))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.from_regex(r"k[a-z]{0,7}", fullmatch=True), inner),
    max_leaves=20,
)


@given(json_values)
def test_json_is_read_as_itself(value: Any) -> None:
    (document,) = documents(json.dumps({"x": value}, ensure_ascii=False), "test")

    assert (document.value, document.problems) == ({"x": value}, [])


@given(json_values)
def test_every_field_of_a_block_document_has_the_line_it_stands_on(value: Any) -> None:
    text = yaml.safe_dump({"x": value, "last": 1}, sort_keys=False)
    (document,) = documents(text, "test")

    lines = text.splitlines()
    for path, line in document.lines.items():
        if isinstance(path[-1], str):
            assert path[-1] in lines[line - 1]
    assert document.lines["last",] == len(lines)


def test_empty_documents_are_passed_over() -> None:
    found = documents("---\n---\na: 1\n---\n# nothing\n---\nb: 2\n", "test")

    assert [(document.value, document.line) for document in found] == [({"a": 1}, 3), ({"b": 2}, 7)]


def test_a_key_given_twice_is_a_problem_and_the_first_counts() -> None:
    (document,) = documents("a:\n  b: 1\n  b: 2\n", "test")

    assert document.value == {"a": {"b": 1}}
    assert [(problem.where, problem.line) for problem in document.problems] == [("a.b", 3)]


def test_a_merge_key_fills_in_what_the_mapping_does_not_say() -> None:
    (document,) = documents("a: &a {p: 1, q: 1}\nb: &b {q: 2, r: 2}\nc: {<<: [*a, *b], r: 3}\n", "test")

    assert document.value["c"] == {"p": 1, "q": 1, "r": 3}
    assert document.problems == []


def test_keys_become_strings_as_json_wants_them() -> None:
    (document,) = documents("1: a\non: b\n1.5: c\n", "test")

    assert document.value == {"1": "a", "true": "b", "1.5": "c"}
