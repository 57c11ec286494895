# SPDX-License-Identifier: Apache-2.0
"""Plans drawn at random, on the real stack: whatever they come to, the run succeeds and loses nothing (`make soak`).

TANDEM_CHAOS_PLANS: how many plans, of three faults each. TANDEM_CHAOS_FIRST: the first one's seed, to go on where an
earlier night ended. TANDEM_CHAOS_SECONDS: no further run begins after so long.
"""

import os
import time
from pathlib import Path

import pytest
from broken_run import RUN_SECONDS, START_SECONDS, broken_run, can_confine

from tandem_cli.chaos.plan import Fault, Kind, Plan, RandomFaults, dumped

PLANS = int(os.environ.get("TANDEM_CHAOS_PLANS", "100"))
FIRST = int(os.environ.get("TANDEM_CHAOS_FIRST", "0"))
SECONDS = float(os.environ.get("TANDEM_CHAOS_SECONDS", "10800"))
FAULTS_A_PLAN = 3
PLANS_A_RUN = 5
ITERATIONS_A_FAULT = 2
LONGEST = "15s"
"""Longer than a lease: some lose it and some do not."""


def kinds() -> tuple[Kind, ...]:
    """All that can be done to a run in this place; only its disk is not filled, for it is everybody's."""
    possible = (Kind.KILL, Kind.STOP, Kind.SLOW_DOWN, Kind.LOSE_LEASE, Kind.CORRUPT_SEGMENT)
    return (*possible, Kind.OUT_OF_MEMORY, Kind.PARTITION) if can_confine() else possible


def faults_of(seed: int) -> tuple[Fault, ...]:
    drawn = {"count": FAULTS_A_PLAN, "kinds": kinds(), "longest": LONGEST}
    return Plan(seed=seed, random=RandomFaults.model_validate(drawn)).resolved()


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + START_SECONDS * FAULTS_A_PLAN * PLANS_A_RUN + RUN_SECONDS)
def test_a_run_survives_whatever_is_drawn(tmp_path: Path) -> None:
    until = time.monotonic() + SECONDS
    for first in range(FIRST, FIRST + PLANS, PLANS_A_RUN):
        seeds = range(first, min(first + PLANS_A_RUN, FIRST + PLANS))
        survive(tmp_path / f"from-{first}", [fault for seed in seeds for fault in faults_of(seed)])
        print(f"{seeds.stop - FIRST} of {PLANS} plans", flush=True)
        if time.monotonic() > until:
            break


def survive(directory: Path, faults: list[Fault]) -> None:
    directory.mkdir()
    (directory / "plan.yaml").write_text(dumped(faults))
    iterations = ITERATIONS_A_FAULT * len(faults) + 2
    run = broken_run(directory, faults, {"spec.iterations": iterations, "spec.runPolicy": {"maxRestarts": 1000}})
    assert [recovery for recovery in run.recoveries if recovery.seconds is None] == []
    assert run.status == 0
    run.assert_nothing_lost()
    run.assert_trained_once()
