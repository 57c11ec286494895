# SPDX-License-Identifier: Apache-2.0
"""The documentation speaks of everything that a user meets, and of nothing that is not there."""

import re
from pathlib import Path

import pytest
import yaml

from tandem_operator import policy

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
POLICIES = Path(policy.__file__).parent
TROUBLESHOOTING = (DOCS / "troubleshooting.md").read_text()


def reasons() -> set[str]:
    """What the policies give as reasons of troubles and of failures."""
    source = "".join(path.read_text() for path in POLICIES.glob("*.py"))
    return set(re.findall(r'(?:Trouble\(|Outcome\(False,)\s*"(\w+)"', source))


def test_every_reason_of_trouble_is_in_troubleshooting() -> None:
    found = reasons()
    assert {"Unschedulable", "CrashLoop", "RunFailed"} <= found
    assert {reason for reason in found if f"`{reason}`" not in TROUBLESHOOTING} == set()


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    rules = yaml.safe_load((ROOT / "charts" / "tandem" / "rules" / "tandem.yaml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    runbooks = {path.stem for path in (DOCS / "runbooks").glob("Tandem*.md")}
    assert alerts == runbooks


@pytest.mark.parametrize("folder", ["runbooks", "decisions"])
def test_a_folders_index_names_all_its_pages(folder: str) -> None:
    index = (DOCS / folder / "README.md").read_text()
    pages = {path.name for path in (DOCS / folder).glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


def test_the_navigation_reaches_every_page_outside_of_these_folders() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    listed = {page for page in pages if not page.startswith(("runbooks/T", "decisions/"))}
    assert {page for page in listed if page not in navigation} == set()


def test_values_that_the_documentation_names_are_the_charts() -> None:
    values = yaml.safe_load((ROOT / "charts" / "tandem" / "values.yaml").read_text())
    text = "".join((DOCS / page).read_text() for page in ("install.md", "security.md", "operations.md"))
    roots = "|".join(values)
    for path in set(re.findall(rf"`((?:{roots})\.[\w.]+)(?:=[^`]*)?`", text)):
        found = values
        for part in path.split("."):
            assert part in found, f"{path} is no value of the chart"
            found = found[part]
