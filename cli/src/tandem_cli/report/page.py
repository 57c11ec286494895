# SPDX-License-Identifier: Apache-2.0
"""The page: a template, a stylesheet and a script of our own, with the run's data inside. No request leaves it."""

import json
import os
import tempfile
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from tandem_cli.report.data import RunData, phase_seconds


def write_report(path: Path, data: RunData, other: RunData | None = None) -> None:
    """Write the report of a run, beside another one if given; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(render(data, other))
    Path(name).chmod(0o644)
    Path(name).replace(path)


def render(data: RunData, other: RunData | None = None) -> str:
    """The page as HTML."""
    assets = resources.files("tandem_cli.report") / "assets"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((assets / "page.html").read_text(encoding="utf-8"))
    runs = [data] if other is None else [data, other]
    return template.render(
        title=" and ".join(run.name for run in runs),
        style=(assets / "page.css").read_text(encoding="utf-8"),
        scripts=[(assets / name).read_text(encoding="utf-8") for name in ("charts.js", "timeline.js", "page.js")],
        data=_embedded([_content(run) for run in runs]),
    )


def _content(run: RunData) -> dict[str, Any]:
    return {
        "name": run.name,
        "summary": asdict(run.summary),
        "phaseSeconds": phase_seconds(run.metrics, run.timeline),
        "metrics": run.metrics,
        "timeline": run.timeline,
        "status": run.status.model_dump(mode="json", by_alias=True, exclude_none=True),
        "spec": run.spec,
    }


def _embedded(content: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
