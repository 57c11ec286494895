# SPDX-License-Identifier: Apache-2.0
"""Checks each panel's expression, unit and legend against the declared metrics: ``python -m dashboards.check``."""

import re
import sys
from collections.abc import Iterator

from dashboards.pages import PAGES
from dashboards.panels import Panel
from dashboards.units import METRICS, Mistake, value_of

_VARIABLES = {"$__rate_interval": "5m", "$__range": "6h"}


def problems(panel: Panel) -> Iterator[str]:
    """What is wrong with a panel."""
    if not panel.description:
        yield "has no description"
    for query in panel.queries:
        try:
            value = value_of(query.expression)
        except Mistake as mistake:
            yield f"{mistake}: {query.expression}"
            continue
        if panel.unit not in value.units:
            yield f"shows {panel.unit}, but measures {value.units or value.powers}: {query.expression}"
        for label in re.findall(r"{{(\w+)}}", query.legend):
            if label not in value.labels:
                yield f"legend {query.legend}: the result has only the labels {sorted(value.labels)}"


def expressions() -> Iterator[tuple[str, str]]:
    """(where, expression) of every panel, with Grafana's intervals put in; variables of the page stay."""
    for page in PAGES:
        for row in page.rows:
            for panel in row.panels:
                for query in panel.queries:
                    text = query.expression
                    for name, value in _VARIABLES.items():
                        text = text.replace(name, value)
                    yield f"{page.title} / {panel.title}", text


def main() -> int:
    """Exit status: 1 if a panel is wrong or a metric is shown nowhere."""
    wrong = [
        f"{page.title} / {row.title} / {panel.title}: {problem}"
        for page in PAGES
        for row in page.rows
        for panel in row.panels
        for problem in problems(panel)
    ]
    everything = " ".join(expression for _, expression in expressions())
    shown_in_alerts = {"tandem_phase_deadline_timestamp_seconds", "tandem_phase"}
    wrong += [
        f"{name} is on no dashboard"
        for name in METRICS
        if name.startswith("tandem") and name not in everything and name not in shown_in_alerts
    ]
    print("\n".join(wrong) if wrong else f"{len(list(expressions()))} expressions fit the declared metrics")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
