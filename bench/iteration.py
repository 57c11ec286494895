# SPDX-License-Identifier: Apache-2.0
"""Where an iteration's time goes: rollout, release, train, handoff, and what is none of them."""

import argparse
import shutil
import statistics
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from runs import ROOT, run

PHASES = ("rollout", "release", "train", "handoff")
SWITCHING = ("release", "handoff")
MOST_SWITCHING = 0.10
_WARM = 2


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--iterations", type=int, default=12)
    arguments.add_argument("--out", type=Path, default=ROOT / "runs" / "iteration")
    options = arguments.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    changes = {"spec.iterations": options.iterations, "spec.data.warmup.epochs": 1}
    lines = run(ROOT / "examples" / "chain-sum.yaml", changes, options.out)
    trained = [line for line in lines if line["loss"] is not None][_WARM:]
    whole = statistics.median(line["seconds"] for line in trained)
    seconds = {name: statistics.median(line["phaseSeconds"].get(name, 0.0) for line in trained) for name in PHASES}
    seconds["idle"] = statistics.median(line["seconds"] - sum(line["phaseSeconds"].values()) for line in trained)
    table = Table("part", "median seconds", "share of the iteration", title=f"{len(trained)} iterations of chain-sum")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.3f}", f"{value / whole:.1%}")
    table.add_section()
    for name in sorted({step for line in trained for step in line["switchSteps"]}):
        value = statistics.median(line["switchSteps"].get(name, 0.0) for line in trained)
        table.add_row(f"switch step {name}", f"{value:.3f}", f"{value / whole:.1%}")
    Console().print(table)
    switching = sum(seconds[name] for name in SWITCHING) / whole
    Console().print(f"switching: {switching:.1%} of the iteration; wanted: less than {MOST_SWITCHING:.0%}")
    return 0 if switching < MOST_SWITCHING else 1


if __name__ == "__main__":
    sys.exit(main())
