# SPDX-License-Identifier: Apache-2.0
"""Checks each panel's expression, unit and legend against the declared metrics: ``python -m dashboards.check``.

With the path of promtool as an argument, it reads every expression as well.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import yaml
from dashboards.pages import PAGES
from dashboards.panels import Panel
from dashboards.units import METRICS, Mistake, value_of

_INTERVALS = {"$__rate_interval": "5m", "$__range": "6h"}
_SHOWN_IN_ALERTS = {"tandem_phase_deadline_timestamp_seconds", "tandem_phase"}


def problems(panel: Panel) -> Iterator[str]:
    """What is wrong with a panel."""
    if not panel.description:
        yield "has no description"
    if not panel.queries:
        yield "shows nothing"
    for query in panel.queries:
        try:
            value = value_of(query.expression)
        except Mistake as mistake:
            yield f"{mistake}: {query.expression}"
            continue
        if panel.unit not in value.units:
            yield f"shows {panel.unit}, but measures {value.units or value.powers}: {query.expression}"
        named = re.findall(r"{{(\w+)}}", query.legend)
        if value.labels and not named:
            yield f"legend {query.legend}: it is the same for series that differ in {sorted(value.labels)}"
        for label in named:
            if label not in value.labels:
                yield f"legend {query.legend}: the result has only the labels {sorted(value.labels)}"


def expressions() -> Iterator[tuple[str, str]]:
    """(where, expression) of every panel, with Grafana's intervals put in; variables of the page stay."""
    for page in PAGES:
        for row in page.rows:
            for panel in row.panels:
                for query in panel.queries:
                    text = query.expression
                    for name, value in _INTERVALS.items():
                        text = text.replace(name, value)
                    yield f"{page.title} / {panel.title}", text


def main(promtool: str | None = None) -> int:
    """Exit status: 1 if a panel is wrong or a metric is shown nowhere."""
    wrong = [
        f"{page.title} / {row.title} / {panel.title}: {problem}"
        for page in PAGES
        for row in page.rows
        for panel in row.panels
        for problem in problems(panel)
    ]
    everything = " ".join(expression for _, expression in expressions())
    wrong += [
        f"{name} is on no dashboard"
        for name in METRICS
        if name.startswith("tandem") and name not in everything and name not in _SHOWN_IN_ALERTS
    ]
    if promtool is not None and (complaint := _unreadable(promtool)):
        wrong.append(complaint)
    print("\n".join(wrong) if wrong else f"{len(list(expressions()))} expressions fit the declared metrics")
    return int(bool(wrong))


def _unreadable(promtool: str) -> str:
    """What promtool says of our expressions, as rules; empty if it can read them all."""
    rules = [{"record": f"panel:{number}", "expr": text} for number, (_, text) in enumerate(expressions())]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}, file)
        file.flush()
        done = subprocess.run([promtool, "check", "rules", file.name], capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
