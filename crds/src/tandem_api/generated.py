# SPDX-License-Identifier: Apache-2.0
"""Files that are made from the models and checked in."""

import difflib
import sys
from pathlib import Path


def write_or_check(path: Path, text: str) -> None:
    """Write ``text`` to ``path``; with ``--check`` on the command line, exit 1 with a diff if it differs instead."""
    if "--check" not in sys.argv[1:]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    there = path.read_text(encoding="utf-8") if path.exists() else ""
    diff = difflib.unified_diff(
        there.splitlines(keepends=True), text.splitlines(keepends=True), f"{path.name} (checked in)", "generated"
    )
    sys.stdout.writelines(diff)
    sys.exit(there != text)
