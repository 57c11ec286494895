# SPDX-License-Identifier: Apache-2.0
"""Does the model learn by reinforcement alone? The demo for three seeds, and a control with shuffled rewards.

Accuracy is exact match on held-out prompts that were never trained on: after the warm-up, and after the last iteration.
"""

import argparse
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from runs import ROOT, run

LEAST_GAIN = 0.25
LEAST_END = 0.75
BUDGET = 12
"""Responses with their working shown are about twice as long: they go on in the next iteration, on other weights."""

MOST_CONTROL_GAIN = LEAST_GAIN / 2  # rewards without meaning let the policy drift, either way

CONTROL = {
    "spec.rewards": [{"name": "shuffled", "python": {"callable": "shuffled_reward:score"}}],
    "spec.orchestrator": {"env": [{"name": "PYTHONPATH", "value": str(ROOT / "bench")}]},
}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments.add_argument("--out", type=Path, default=ROOT / "runs" / "learning")
    options = arguments.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    table = Table("run", "after warm-up", "at the end", "gain", "minutes", "as wanted")
    good = True
    cases = [(f"seed {seed}", {"spec.seed": seed}, False) for seed in options.seeds]
    cases.append(("partial rollouts", {"spec.seed": options.seeds[0], "spec.rollout.tokenBudget": BUDGET}, False))
    cases.append(("control: shuffled rewards", {"spec.seed": options.seeds[0], **CONTROL}, True))
    for name, changes, control in cases:
        lines = run(
            ROOT / "examples" / "chain-sum.yaml", changes, options.out / name.replace(": ", "-").replace(" ", "-")
        )
        evaluated = [line["evalAccuracy"] for line in lines if line["evalAccuracy"] is not None]
        first, last = evaluated[0], evaluated[-1]
        minutes = (lines[-1]["startedAt"] + lines[-1]["seconds"] - lines[0]["startedAt"]) / 60
        wanted = last - first <= MOST_CONTROL_GAIN if control else last - first >= LEAST_GAIN and last > LEAST_END
        good &= wanted
        table.add_row(name, f"{first:.1%}", f"{last:.1%}", f"{last - first:+.1%}", f"{minutes:.1f}", str(wanted))
    Console().print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
