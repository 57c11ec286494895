# SPDX-License-Identifier: Apache-2.0
"""report.html holds exactly what the run left behind, at every stage of a run, and asks nothing of any network."""

import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from tandem_api.errors import UserError
from tandem_api.status import RLJobStatus
from tandem_cli.report.data import RunData, load
from tandem_cli.report.headline import cards, facts, flat
from tandem_cli.report.page import render, write_report
from tandem_cli.run.command import tell
from tandem_cli.run.directory import RunDirectory
from tandem_cli.run.driver import End, Ending

SPEC: dict[str, Any] = {
    "iterations": 200,
    "model": {"source": {"hf": {"path": "/models/small"}}, "dtype": "bfloat16"},
    "algorithm": {"mirrorDescent": {"tau": 0.1}},
}
SECONDS = {"Start": 10.0, "Rollout": 6.0, "Release": 0.5, "Train": 3.0, "Handoff": 0.5}


def phases(iteration: int, pods: int) -> list[dict[str, Any]]:
    """The timeline of one iteration; it starts 10 s after the one before."""
    start, rows = 1.7e9 + 10 * iteration, []
    for number, name in enumerate(("Rollout", "Release", "Train", "Handoff")):
        common = {"epoch": 4 * iteration + number, "iteration": iteration, "phase": name, "start": start}
        rows.append({**common, "index": None, "seconds": SECONDS[name]})
        steps = [{"name": "work", "start": start, "seconds": SECONDS[name] / 2}]
        rows += [{**common, "index": pod, "seconds": SECONDS[name] / 2, "steps": steps} for pod in range(pods)]
        start += SECONDS[name]
    return rows


def metrics(iteration: int) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "weightVersion": iteration,
        "seconds": 10.0,
        "phaseSeconds": {name.lower(): seconds for name, seconds in SECONDS.items() if name != "Start"},
        "switchSteps": {"transfer": 0.2},
        "evalAccuracy": 0.5 + iteration / 1000 if iteration % 5 == 0 else None,
        "rewardMean": 0.5 + math.sin(iteration) / 10,
        "tokens": 1000,
        "tokensPerSecond": 1000 / 6,
        "logprobDiffMax": 1e-3,
    }


def run_directory(path: Path, iterations: int, pods: int = 2, name: str = "job", **spec: Any) -> Path:
    path.mkdir(parents=True)
    job = {
        "apiVersion": "tandem-rl.dev/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": name},
        "spec": {**SPEC, **spec},
    }
    (path / "job.yaml").write_text(yaml.safe_dump(job))
    rows = [json.dumps(metrics(number)) for number in range(iterations)]
    lines = [json.dumps(row) for number in range(iterations) for row in phases(number, pods)]
    (path / "metrics.jsonl").write_text("".join(f"{row}\n" for row in rows))
    (path / "timeline.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (path / "status.json").write_text(json.dumps({"phase": "Rollout", "iteration": iterations}))
    return path


class Page(HTMLParser):
    """Text of the data element, and every attribute that could make a browser fetch something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.data = ""
        self.text = ""
        self.references: list[str] = []
        self._in_data = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._in_data = tag == "script" and given.get("id") == "data"
        self.references += [f"{tag} {value}" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_data:
            self.data += data


@pytest.mark.parametrize("iterations", [0, 1, 200])
def test_the_embedded_metrics_equal_those_of_the_run(tmp_path: Path, iterations: int) -> None:
    directory = run_directory(tmp_path / "run", iterations)
    (embedded,) = json.loads(Page(render(load(directory))).data)
    assert embedded["metrics"] == [metrics(number) for number in range(iterations)]
    expected = [row for number in range(iterations) for row in phases(number, 2)]
    assert [(row["epoch"], row["phase"], row["index"]) for row in embedded["timeline"]] == [
        (row["epoch"], row["phase"], row["index"]) for row in expected
    ]
    assert [row["start"] for row in embedded["timeline"]] == pytest.approx([row["start"] for row in expected], abs=1e-4)


def test_the_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    html = render(load(run_directory(tmp_path / "run", 3)))
    assert Page(html).references == ["link data:,"]
    # The one address is the name of the SVG namespace.
    assert set(re.findall(r"https?://[^\s\"']+", html)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in html


def test_nothing_in_the_data_can_end_the_script_element(tmp_path: Path) -> None:
    directory = run_directory(tmp_path / "run", 1, name="job", model={"source": {"hf": {"path": "</script><b>x"}}})
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 1, "note": "</script><script>alert(1)</script>"}) + "\n")
    html = render(load(directory))
    assert "alert(1)</script>" not in html
    assert json.loads(Page(html).data)[0]["metrics"][1]["note"] == "</script><script>alert(1)</script>"
    assert "</script><b>x" not in html


def test_summary_shares_the_time_among_phases(tmp_path: Path) -> None:
    summary = load(run_directory(tmp_path / "run", 10)).summary
    assert summary.seconds == pytest.approx(100)
    # The pods' own part of Train is half of it; the rest is their wait.
    assert summary.utilisation == pytest.approx((6 + 3 / 2) / 10)
    assert summary.switch_share == pytest.approx(0.1)
    assert summary.tokens_per_second == pytest.approx(100)
    assert (summary.accuracy_before, summary.accuracy_after) == (0.5, 0.505)


def test_a_run_that_has_measured_nothing_has_dashes_for_figures(tmp_path: Path) -> None:
    figures = {card.name: card.figures[0].main for card in cards([load(run_directory(tmp_path / "run", 0))])}
    assert figures == {
        "Held-out accuracy": "–",
        "Iterations": "0",
        "Time": "–",
        "Utilisation": "–",
        "Switching": "–",
        "Throughput": "–",
    }


def test_a_line_that_is_still_being_written_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    directory = run_directory(tmp_path / "run", 2)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 2, "rewa')
    assert len(load(directory).metrics) == 2
    (directory / "metrics.jsonl").write_text('{"iteration": 0}\n{"iteration": 1,\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2"):
        load(directory)


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        load(tmp_path)


def test_comparing_shows_both_runs_and_only_the_settings_in_which_they_differ(tmp_path: Path) -> None:
    first = load(run_directory(tmp_path / "first", 3))
    second = load(run_directory(tmp_path / "second", 5, algorithm={"mirrorDescent": {"tau": 0.2}}))
    embedded = json.loads(Page(render(first, second)).data)
    assert [(run["label"], len(run["metrics"])) for run in embedded] == [("first", 3), ("second", 5)]
    assert [(row.name, row.values) for row in facts([first, second]).rows] == [
        ("algorithm.mirrorDescent.tau", ("0.1", "0.2"))
    ]


def test_flat_names_every_leaf_by_its_path() -> None:
    assert flat({"a": {"b": [1, {"c": 2}]}, "d": 3}) == {"a.b[0]": 1, "a.b[1].c": 2, "d": 3}


def test_writing_replaces_the_page_as_a_whole(tmp_path: Path) -> None:
    data: RunData = load(run_directory(tmp_path / "run", 1))
    page = tmp_path / "page.html"
    page.write_text("old")
    write_report(page, data)
    assert page.read_text().startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_run_that_succeeded_says_so_also_where_its_report_cannot_be_written(tmp_path: Path) -> None:
    out = run_directory(tmp_path / "a run", 3)
    (out / "report.html").mkdir()
    said = io.StringIO()
    status = tell(
        Ending(End.SUCCEEDED, RLJobStatus()), tmp_path / "job.yaml", RunDirectory(out), Console(file=said, width=200)
    )
    assert status == 0
    first, *rest = said.getvalue().splitlines()
    assert first == f"{out / 'report.html'}: cannot be written: Is a directory; once it can be: tandem report '{out}'"
    assert rest[0] == "job succeeded."
