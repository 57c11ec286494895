# SPDX-License-Identifier: Apache-2.0
"""The page: a template, a stylesheet and scripts of our own, with the run's data inside. No request leaves it."""

import json
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from tandem_api.errors import Problem, UserError
from tandem_api.files import write_whole
from tandem_cli.report.data import Row, RunData
from tandem_cli.report.headline import cards, facts, subtitle

_SCRIPTS = ("format.js", "charts.js", "timeline.js", "page.js")


def write_report(path: Path, data: RunData, other: RunData | None = None) -> None:
    """Write the report of a run, beside another one if given; a reader never sees half of it.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, render(data, other).encode())
    except OSError as error:
        raise UserError(Problem(str(path), f"cannot be written: {error.strerror or error}")) from error


def render(data: RunData, other: RunData | None = None) -> str:
    """The page as HTML."""
    runs = [data] if other is None else [data, other]
    labels = _labels(runs)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("page.html")).render(
        title=" and ".join(labels),
        runs=[
            {
                "label": label,
                "phase": run.status.phase.value,
                "subtitle": subtitle(run),
                "spec": json.dumps(run.spec, indent=2, ensure_ascii=False),
            }
            for run, label in zip(runs, labels, strict=True)
        ],
        cards=cards(runs),
        facts=facts(runs),
        written=f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
        style=_asset("page.css"),
        scripts=[_asset(name) for name in _SCRIPTS],
        data=_embedded([_content(run, label) for run, label in zip(runs, labels, strict=True)]),
    )


def _labels(runs: list[RunData]) -> list[str]:
    """Names of the runs; of two with the same name, those of their directories, as short as tells them apart."""
    candidates = (
        [run.name for run in runs],
        [run.directory.resolve().name for run in runs],
        [str(run.directory.resolve()) for run in runs],
    )
    return next((names for names in candidates if len(set(names)) == len(names)), candidates[-1])


def _content(run: RunData, label: str) -> dict[str, Any]:
    return {
        "label": label,
        "metrics": run.metrics,
        "timeline": [_rounded(row) for row in run.timeline],
        "uses": {
            index: {use: round(value, 3) for use, value in seconds.items()} for index, seconds in run.uses.items()
        },
    }


def _rounded(row: Row) -> Row:
    """A row of the timeline with times to a tenth of a millisecond, which halves the page."""
    times = {name: round(row[name], 4) for name in ("start", "seconds") if name in row}
    steps = {"steps": [_rounded(step) for step in row["steps"]]} if row.get("steps") else {}
    return row | times | steps


def _embedded(content: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _asset(name: str) -> str:
    return (resources.files("tandem_cli.report") / "assets" / name).read_text(encoding="utf-8")
