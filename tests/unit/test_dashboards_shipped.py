# SPDX-License-Identifier: Apache-2.0
"""Dashboards, alerts, runbooks and their tests are in step with each other and with the declared metrics."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from dashboards import check
from dashboards.generate import path_of, text_of
from dashboards.pages import PAGES
from dashboards.units import METRICS

ROOT = Path(__file__).parents[2]
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((ROOT / "charts/tandem/rules/tandem.yaml").read_text())["groups"]
    for rule in group["rules"]
}
RUNBOOKS = [page for page in (ROOT / "docs/runbooks").glob("*.md") if page.stem != "README"]
TESTS = yaml.safe_load((ROOT / "tests/alerts/tandem.yaml").read_text())["tests"]


def test_the_chart_carries_the_dashboards_as_they_are_generated() -> None:
    for page in PAGES:
        assert path_of(page).read_text() == text_of(page), "run: make generate"


def test_every_panel_fits_the_declared_metrics_and_every_metric_is_shown() -> None:
    assert check.main() == 0


def test_dashboards_link_to_each_other_by_their_ids() -> None:
    for page in PAGES:
        links = {link["url"] for link in json.loads(text_of(page))["links"]}
        assert links == {f"/d/{other.uid}" for other in PAGES if other is not page}


def test_every_alert_has_a_runbook_with_the_same_sections() -> None:
    pages = {path.stem: path.read_text() for path in RUNBOOKS}
    assert set(pages) == set(RULES)
    for name, rule in RULES.items():
        assert rule["annotations"]["runbook_url"].endswith(f"/docs/runbooks/{name}.md")
        sections = [name, "What it means", "Where to look", "Commands", "What to do"]
        assert re.findall(r"^#+ (.*)$", pages[name], re.M) == sections
        symptom = pages[name].removeprefix(f"# {name}\n\n").split("\n\n")[0]
        assert symptom.endswith(".")


def test_the_commands_of_runbooks_are_shell_that_asks_the_cluster() -> None:
    for page in RUNBOOKS:
        (commands,) = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.M | re.S)
        assert "kubectl --namespace $NAMESPACE" in commands, page.stem
        subprocess.run(["bash", "-n"], input=commands, text=True, check=True)


def test_alerts_use_declared_metrics_only() -> None:
    for name, rule in RULES.items():
        for metric in re.findall(r"\b(?:tandem|etcd)_[a-z0-9_]+", rule["expr"]):
            known = {metric, re.sub(r"_(bucket|count|sum)$", "", metric)}
            assert known & set(METRICS) or metric == "tandem_rl_dev_job", f"{name}: {metric}"


def test_every_alert_is_tested_to_fire_and_to_be_silent() -> None:
    fires = {test["name"].split()[0] for test in TESTS if " fires " in test["name"]}
    silent = {test["name"].split()[0] for test in TESTS if " is silent " in test["name"]}
    assert fires == silent == set(RULES)
    for test in TESTS:
        for expected in test["promql_expr_test"]:
            assert test["name"].split()[0] in expected["expr"]
            assert bool(expected.get("exp_samples")) == (" fires " in test["name"])
