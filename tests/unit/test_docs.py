# SPDX-License-Identifier: Apache-2.0
"""The documentation speaks of everything that a user meets, and of nothing that is not there."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifest_cases import MANIFESTS
from operator_fixture import merged
from typer.main import get_command

from tandem_api.manifest import read, spec_problems
from tandem_cli.cluster import main as plugin
from tandem_cli.main import app
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


def fragments() -> Iterator[Any]:
    """Pieces of ``spec`` that pages show."""
    for page in sorted(DOCS.glob("*.md")):
        for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)):
            content = yaml.safe_load(text) if "--8<--" not in text else None
            content = content.get("spec", content) if content and "apiVersion" not in content else None
            if content and content.keys() <= {
                "model",
                "data",
                "rewards",
                "orchestrator",
                "hybrid",
                "trainer",
                "engine",
            }:
                yield pytest.param(content, id=f"{page.stem}-{number}")


@pytest.mark.parametrize("fragment", list(fragments()))
def test_a_piece_of_a_manifest_that_a_page_shows_is_valid(fragment: dict[str, Any]) -> None:
    base = read(MANIFESTS / "smallest.yaml").spec
    kept = {name: value for name, value in base.items() if name not in ("model", "rewards") or name not in fragment}
    assert spec_problems(merged(kept, fragment)) == []


def test_commands_that_pages_name_exist() -> None:
    text = "".join(page.read_text() for page in (*DOCS.rglob("*.md"), ROOT / "README.md"))
    tandem = set(
        re.findall(r"(?:^|[ /`])(?<!kubectl )tandem ([a-z0-9]+) (?:FILE|DIR|[\w/-]+\.yaml)", text, re.MULTILINE)
    )
    kubectl_tandem = set(re.findall(r"kubectl tandem ([a-z]+)", text))
    assert {"run", "validate"} <= tandem <= get_command(app).commands.keys()  # type: ignore[attr-defined]
    assert {"explain", "logs"} <= kubectl_tandem <= plugin.app.commands.keys()


class Assets(HTMLParser):
    """What a browser fetches for a page by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.found.add(given.get("src") or "")
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.found.add(given.get("href") or "")


def test_the_pages_are_built_without_a_broken_link_and_fetch_nothing_from_elsewhere(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        build, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assets = Assets()
    for page in tmp_path.rglob("*.html"):
        assets.feed(page.read_text())
    assert {asset for asset in assets.found if "//" in asset} == set()
    styles = "".join(style.read_text() for style in tmp_path.rglob("*.css"))
    assert not re.search(r"url\([\"']?(?:https?:)?//", styles)
