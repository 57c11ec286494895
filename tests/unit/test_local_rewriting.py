# SPDX-License-Identifier: Apache-2.0
"""Mount paths and host names of a cluster become those of this machine, and nothing else changes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_cli.local.rewriting import Rewriting

REWRITING = Rewriting(
    mounts={"/tmp": Path("/s/3/tmp"), "/etc/tandem": Path("/s/3/job"), "/etc/tandem/more": Path("/s/3/more")},
    hosts={"job-hybrid-0.job-hybrid": "127.9.9.10", "job-hybrid": "127.9.9.10", "job-orchestrator": "127.9.9.11"},
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/tmp", "/s/3/tmp"),
        ("--file=/etc/tandem/job.json", "--file=/s/3/job/job.json"),
        ("unix:///tmp/engine.sock", "unix:///s/3/tmp/engine.sock"),
        ("/tmp/a:/etc/tandem", "/s/3/tmp/a:/s/3/job"),
        ("/etc/tandem/more/x", "/s/3/more/x"),
        ("http://job-orchestrator:8080/v1", "http://127.9.9.11:8080/v1"),
        ("job-hybrid-0.job-hybrid:29400", "127.9.9.10:29400"),
        ("a=job-orchestrator,job-hybrid", "a=127.9.9.11,127.9.9.10"),
    ],
)
def test_mounts_and_hosts_are_replaced_longest_first(text: str, expected: str) -> None:
    assert REWRITING.text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "/tmpfile",
        "/var/tmp",
        "x/tmp",
        "/etc/tandem-old/job.json",
        "my-job-orchestrator",
        "job-orchestrator-spec",
        "/data/job-hybrid/x",
    ],
)
def test_other_names_stay(text: str) -> None:
    assert REWRITING.text(text) == text


def test_json_documents_change_only_where_a_whole_string_is_a_path_below_a_mount() -> None:
    document = {"prompts": [{"path": "/tmp/p.jsonl"}], "text": "see /tmp/p.jsonl", "other": "/data/x", "number": 3}
    rewritten = json.loads(REWRITING.document(json.dumps(document)))
    assert rewritten == document | {"prompts": [{"path": "/s/3/tmp/p.jsonl"}]}


def test_what_lies_below_an_empty_mount_on_this_machine_is_meant_as_it_is_here(tmp_path: Path) -> None:
    there = tmp_path / "prompts.jsonl"
    there.touch()
    rewriting = Rewriting({str(tmp_path): Path("/s/tmp")}, {}, frozenset({str(tmp_path)}))
    assert rewriting.text(f"{there}:{tmp_path}/new:{tmp_path}") == f"{there}:/s/tmp/new:/s/tmp"
    assert rewriting.path(str(there)) == there
    assert rewriting.path(str(tmp_path)) == Path("/s/tmp")


@given(st.text())
def test_documents_that_name_no_mount_stay_byte_for_byte(text: str) -> None:
    assert Rewriting({"/nowhere/at/all": Path("/x")}, {}).document(text) == text
