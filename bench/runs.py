# SPDX-License-Identifier: Apache-2.0
"""Runs of `tandem run` for benchmarks: an example with changes, in a directory of its own, with its metrics."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
TANDEM = Path(sys.executable).parent / "tandem"


def changed(example: Path, changes: Mapping[str, Any]) -> str:
    """The manifest with values replaced by dotted path, for example ``{"spec.seed": 3}``."""
    manifest = yaml.safe_load(example.read_text())
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = manifest
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = value
    return yaml.safe_dump(manifest, sort_keys=False)


def run(example: Path, changes: Mapping[str, Any], out: Path) -> list[dict[str, Any]]:
    """Run to the end; the lines of metrics.jsonl.

    Raises:
        subprocess.CalledProcessError: the run did not succeed; its output is on the terminal.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    manifest = out.with_suffix(".yaml")
    manifest.write_text(changed(example, changes))
    subprocess.run([TANDEM, "run", manifest, "--out", out], check=True)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
