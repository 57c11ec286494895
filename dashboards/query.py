# SPDX-License-Identifier: Apache-2.0
"""Executes the expression of every panel and alert against a Prometheus that has scraped a run:

python -m dashboards.query http://127.0.0.1:9090 NAMESPACE JOB [UNIX-SECONDS]
"""

import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from dashboards.check import expressions

_RULES = Path(__file__).parents[1] / "charts" / "tandem" / "rules" / "tandem.yaml"
_ONLY_ON_A_CLUSTER = ("tandem_operator_", "etcd_disk_")
"""Prefixes of what a run on one machine does not have: the operator, and an etcd that is scraped."""


def result(url: str, expression: str, at: float) -> list[Any]:
    """The series of an instant query.

    Raises:
        ValueError: Prometheus refuses the expression.
    """
    query = urllib.parse.urlencode({"query": expression, "time": at})
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query?{query}") as answer:  # noqa: S310 (the user names it)
            found: list[Any] = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        raise ValueError(json.load(error)["error"]) from error
    return found


def main(url: str, namespace: str, job: str, at: float) -> int:
    """Exit status: 1 if an expression errs, or a panel has no data that a run on one machine should give."""
    wrong = 0
    for where, text in expressions():
        expression = text.replace("$namespaces", namespace).replace("$namespace", namespace).replace("$job", job)
        wrong += _report(url, where, expression, at, may_be_empty=any(name in text for name in _ONLY_ON_A_CLUSTER))
    for group in yaml.safe_load(_RULES.read_text())["groups"]:
        for rule in group["rules"]:
            wrong += _report(url, f"alert {rule['alert']}", rule["expr"], at, may_be_empty=True)
    return int(bool(wrong))


def _report(url: str, where: str, expression: str, at: float, *, may_be_empty: bool) -> bool:
    try:
        series = result(url, expression, at)
    except ValueError as error:
        print(f"ERROR  {where}: {error}")
        return True
    wrong = not series and not may_be_empty
    print(f"{'EMPTY' if wrong else 'empty' if not series else 'ok   '}  {where}: {len(series)} series")
    return wrong


if __name__ == "__main__":
    source, space, name, *moment = sys.argv[1:]
    sys.exit(main(source.rstrip("/"), space, name, float(moment[0]) if moment else time.time()))
