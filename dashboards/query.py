# SPDX-License-Identifier: Apache-2.0
"""Executes the expression of every panel and alert against a Prometheus that has scraped a run:

python -m dashboards.query http://127.0.0.1:9090 NAMESPACE JOB [UNIX-SECONDS]

A run on one machine has no operator; what is empty for that reason, or because nothing is wrong, is listed here.
"""

import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from dashboards.check import expressions

_RULES = Path(__file__).parents[1] / "charts" / "tandem" / "rules" / "tandem.yaml"
_SECONDS = 60.0
_SELECTOR = re.compile(r"\b(?:tandem|etcd)_[a-z_]+(?<!_dev_job)\b(?:\{[^}]*\})?")

EMPTY_ON_ONE_MACHINE = frozenset(
    {
        "Tandem / Fleet / Jobs by phase",
        "Tandem / Operator / Leaders",
        "Tandem / Operator / etcd",
        "Tandem / Operator / Jobs by phase",
        "Tandem / Operator / Queue",
        "Tandem / Operator / Time to reconcile",
        "Tandem / Operator / Reconciliations",
        "Tandem / Operator / API requests",
        "Tandem / Operator / Failed API requests",
        "Tandem / Operator / etcd's disk",
        "TandemOperatorWithoutLeader / tandem_operator_leader",
        "TandemOperatorNotReconciling / tandem_operator_queue_depth",
        "TandemOperatorNotReconciling / tandem_operator_reconcile_seconds_count",
        "TandemEtcdUnreachable / tandem_operator_etcd_up",
        "TandemEtcdSlow / tandem_operator_leader",
    }
)
"""Panels, and metrics within alerts, that have no data where there is no operator and etcd does not sync to disk."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What Prometheus says to an expression. ``series`` counts those with a number; an alert fires if it has any."""

    where: str
    expression: str
    series: int = 0
    error: str = ""

    @property
    def is_alert(self) -> bool:
        return self.where.startswith("alert ")


def answers(url: str, namespace: str, job: str, at: float) -> Iterator[Answer]:
    """The answers to every panel's expressions, every metric that an alert reads, and every alert's expression."""
    for where, text in expressions():
        expression = text.replace("$namespaces", namespace).replace("$namespace", namespace).replace("$job", job)
        yield ask(url, where, expression, at)
    for group in yaml.safe_load(_RULES.read_text())["groups"]:
        for rule in group["rules"]:
            for selector in dict.fromkeys(_SELECTOR.findall(rule["expr"])):
                name = selector.partition("{")[0]
                yield ask(url, f"{rule['alert']} / {name}", f"count({selector})", at)
            yield ask(url, f"alert {rule['alert']}", rule["expr"], at)


def ask(url: str, where: str, expression: str, at: float) -> Answer:
    """The answer to one expression at a time in Unix seconds."""
    query = urllib.parse.urlencode({"query": expression, "time": at})
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=_SECONDS) as answer:  # noqa: S310 (the user names it)
            found = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        return Answer(where, expression, error=json.load(error)["error"])
    return Answer(where, expression, sum(not math.isnan(float(series["value"][1])) for series in found))


def problems(answered: list[Answer]) -> list[str]:
    """Expressions that err, and those that are empty or not against the list above."""
    wrong = [f"{answer.where}: {answer.error}: {answer.expression}" for answer in answered if answer.error]
    for answer in answered:
        listed = answer.where in EMPTY_ON_ONE_MACHINE
        if not answer.is_alert and not answer.error and bool(answer.series) == listed:
            what = f"has {answer.series} series though it is listed as empty" if listed else "has no data"
            wrong.append(f"{answer.where} {what}: {answer.expression}")
    return wrong


def main(url: str, namespace: str, job: str, at: float) -> int:
    """Exit status: 1 if an expression errs, or has no data that a run on one machine should give."""
    answered = list(answers(url, namespace, job, at))
    for answer in answered:
        print(f"{answer.series:4} {answer.where}")
    wrong = problems(answered)
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    source, space, name, *moment = sys.argv[1:]
    sys.exit(main(source.rstrip("/"), space, name, float(moment[0]) if moment else time.time()))
