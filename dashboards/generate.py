# SPDX-License-Identifier: Apache-2.0
"""Writes the dashboards' JSON into the chart: ``python -m dashboards.generate [--check]``."""

import sys
from pathlib import Path

from dashboards.pages import PAGES
from dashboards.panels import Page
from grafana_foundation_sdk.cog.encoder import JSONEncoder

FOLDER = Path(__file__).parents[1] / "charts" / "tandem" / "dashboards"


def path_of(page: Page) -> Path:
    return FOLDER / f"{page.uid}.json"


def text_of(page: Page) -> str:
    """The dashboard as Grafana imports it; keys in order, so that it differs only where it changed."""
    made = page.build(other for other in PAGES if other is not page)
    text: str = JSONEncoder(sort_keys=True, indent=2).encode(made)
    return text + "\n"


def main() -> int:
    """Exit status: 1 with ``--check`` and a file that is out of date."""
    check = "--check" in sys.argv[1:]
    stale = [page for page in PAGES if not path_of(page).exists() or path_of(page).read_text() != text_of(page)]
    for page in stale:
        if check:
            print(f"{path_of(page).name} is out of date; run `make generate`")
        else:
            path_of(page).write_text(text_of(page))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
