# SPDX-License-Identifier: Apache-2.0
"""``tandem curate code``: real CYaRon, real sandbox, solutions known to be right or wrong."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from code_problems import DIAMETER, SUM, problem

from tandem_api.records import Record, read_records
from tandem_orchestrator.sandbox.client import Sandbox
from tandem_orchestrator.sandbox.runs import Limits, Verdict

TANDEM = Path(sys.executable).parent / "tandem"
PATIENT = Limits(seconds=60.0)
OPTIONS = ("--cases", "5", "--least-cases", "4", "--timeout", "6s")
PROBLEMS = [
    problem("sums", SUM, right=10, difficulty=2.0, meta={"source": "test"}),
    problem("sums with one wrong", SUM, right=9, wrong=1),
    problem("sums with two wrong", SUM, right=8, wrong=2),
    problem("sums with four wrong", SUM, right=6, wrong=4),
    problem("diameters", DIAMETER, right=9, wrong=1, domain="graphs"),
    problem("few", SUM, right=9),
    problem("broken generator", SUM, right=10, generator="import nothing_of_that_name"),
    problem("one input only", SUM, right=10, generator="print(1); print(5)"),
    problem("random answers", SUM | {"right": ("import random; print(random.random())",)}, right=10),
]


@dataclass(frozen=True, slots=True)
class Result:
    kept: dict[str, Record]
    dropped: dict[str, dict[str, Any]]
    report: dict[str, Any]
    printed: str


def curated(problems: Path, out: Path) -> Result:
    done = subprocess.run(
        [TANDEM, "curate", "code", problems, "--out", out, *OPTIONS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kept = {found.id: found for found in read_records(out / "kept.jsonl") if isinstance(found, Record)}
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    report = json.loads((out / "report.json").read_text())
    return Result(kept, {line["id"]: line for line in dropped}, report, done.stdout)


def written(directory: Path, problems: list[dict[str, Any]]) -> Path:
    path = directory / "problems.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in problems))
    return path


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    directory = tmp_path_factory.mktemp("curate")
    return curated(written(directory, PROBLEMS), directory / "out")


def test_problems_whose_programs_agree_are_kept_with_tests(result: Result):
    assert set(result.kept) == {"sums", "sums with one wrong", "diameters"}
    for record in result.kept.values():
        assert 4 <= len(record.tests) <= 5
    for test in result.kept["sums"].tests:
        count, numbers = test.input.splitlines()
        assert len(numbers.split()) == int(count)
        assert int(test.output) == sum(map(int, numbers.split()))


def test_what_a_problem_says_of_itself_is_passed_on(result: Result):
    record = result.kept["sums"]
    assert (record.prompt, record.domain, record.difficulty) == ("Solve sums.", "code", 2.0)
    assert record.meta == {"source": "test"}
    assert result.kept["diameters"].domain == "graphs"


def test_each_dropped_problem_has_its_reason_and_figures(result: Result):
    reasons = {name: line["reason"] for name, line in result.dropped.items()}
    assert reasons == {
        "sums with two wrong": "too few programs pass all tests",
        "sums with four wrong": "too few inputs on whose output programs agree",
        "few": "too few submissions",
        "broken generator": "the generator makes too few inputs",
        "one input only": "the generator makes too few inputs",
        "random answers": "too few inputs on whose output programs agree",
    }
    assert result.dropped["sums with two wrong"]["detail"].startswith("8 of 10 programs pass all")
    assert "No module named 'nothing_of_that_name'" in result.dropped["broken generator"]["detail"]
    assert "1 different inputs of 5 runs" in result.dropped["one input only"]["detail"]


def test_the_report_counts_reasons_and_says_what_the_sandbox_holds(result: Result):
    assert (result.report["problems"], result.report["kept"]) == (9, 3)
    assert result.report["dropped"]["too few submissions"] == 1
    assert sum(result.report["dropped"].values()) == 6
    assert "network" in result.report["sandbox"]["held"]
    assert "dropped: too few submissions" in result.printed


def test_the_same_seed_makes_the_same_tests(result: Result, tmp_path: Path):
    again = curated(written(tmp_path, PROBLEMS[:1]), tmp_path / "out")
    assert again.kept["sums"].tests == result.kept["sums"].tests


async def test_kept_tests_tell_right_from_wrong_programs(result: Result):
    tests = result.kept["diameters"].tests
    with Sandbox(2) as sandbox:
        for source, expected in ((DIAMETER["right"][0], True), (DIAMETER["wrong"][0], False)):
            outcomes = [await sandbox.run(source, test.input, expected=test.output, limits=PATIENT) for test in tests]
            assert all(outcome.verdict is Verdict.PASSED for outcome in outcomes) is expected


@pytest.mark.parametrize(
    ("line", "options", "words"),
    [
        ({"id": "x", "prompt": "?"}, (), "problems.jsonl:1: generator: Field required"),
        ({"id": "x", "generator": "print(1)"}, (), "set exactly one of prompt and messages"),
        (PROBLEMS[0], ("--agree", "11"), "must be 1 to 10"),
        (PROBLEMS[0], ("--timeout", "soon"), "invalid"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, line: dict[str, Any], options: tuple[str, ...], words: str):
    command = [TANDEM, "curate", "code", written(tmp_path, [line]), "--out", tmp_path / "out", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words in done.stderr
