# SPDX-License-Identifier: Apache-2.0
"""``tandem report``."""

from pathlib import Path

from tandem_cli.report.data import load
from tandem_cli.report.page import write_report


def report_command(directory: Path, compare: Path | None, out: Path | None) -> Path:
    """Write the page and return where it is.

    Raises:
        UserError: a directory holds no run, or the page cannot be written.
    """
    page = out or directory / "report.html"
    write_report(page, load(directory), load(compare) if compare else None)
    return page
