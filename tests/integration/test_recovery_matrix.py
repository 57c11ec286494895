# SPDX-License-Identifier: Apache-2.0
"""Every kind of fault in every phase where it makes sense: a run of the real stack for each phase (`make soak`)."""

from dataclasses import replace
from pathlib import Path

import pytest
from broken_run import broken_run, can_confine

from tandem_api.messages.phases import PhaseName
from tandem_cli.chaos.plan import Component, Fault, Kind

P = PhaseName
LEASE_AND_MORE = 15.0
TRAIN_DEADLINE_AND_MORE = 75.0
UNTIL_REPLACED = 600.0
PARTITION_SECONDS = 30.0
SLOW_SECONDS = 20.0


def killed(component: Component) -> Fault:
    return Fault(Kind.KILL, component, P.ROLLOUT)


ANYWHERE = (*map(killed, Component), Fault(Kind.LOSE_LEASE, Component.ORCHESTRATOR, P.ROLLOUT))
MEMBER = (
    Fault(Kind.LOSE_LEASE, Component.SIDECAR, P.ROLLOUT),
    Fault(Kind.STOP, Component.SIDECAR, P.ROLLOUT, seconds=LEASE_AND_MORE),
)
ENGINE_STOPPED = Fault(Kind.STOP, Component.ENGINE, P.ROLLOUT, seconds=UNTIL_REPLACED)
TRAINER_STOPPED = Fault(Kind.STOP, Component.TRAINER, P.TRAIN, seconds=TRAIN_DEADLINE_AND_MORE)
CORRUPTED = Fault(Kind.CORRUPT_SEGMENT, Component.TRAINER, P.HANDOFF)
FAULTS = {
    P.ROLLOUT: (*ANYWHERE, *MEMBER, ENGINE_STOPPED),
    P.RELEASE: (*ANYWHERE, *MEMBER),
    P.TRAIN: (*ANYWHERE, *MEMBER, TRAINER_STOPPED),
    P.HANDOFF: (*ANYWHERE, *MEMBER, ENGINE_STOPPED, CORRUPTED),
    P.RECOVER: ANYWHERE,
}
CONFINED = (
    *(
        Fault(Kind.OUT_OF_MEMORY, component, phase)
        for phase, component in (
            (P.ROLLOUT, Component.ENGINE),
            (P.ROLLOUT, Component.ORCHESTRATOR),
            (P.TRAIN, Component.TRAINER),
            (P.HANDOFF, Component.TRAINER),
        )
    ),
    *(
        Fault(Kind.PARTITION, component, phase, seconds=PARTITION_SECONDS)
        for phase in (P.ROLLOUT, P.TRAIN)
        for component in (Component.POD, Component.ORCHESTRATOR)
    ),
)
"""What takes root."""
SLOW = tuple(
    Fault(Kind.SLOW_DOWN, Component.POD, phase, seconds=SLOW_SECONDS)
    for phase in (P.ROLLOUT, P.RELEASE, P.TRAIN, P.HANDOFF)
)
"""A pod that is ten times slower than the others at each barrier."""
ITERATIONS = 12


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("phase", FAULTS, ids=str)
def test_a_run_survives_every_fault_in(phase: PhaseName, tmp_path: Path) -> None:
    survive(tmp_path, [replace(fault, phase=phase) for fault in FAULTS[phase]])


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_run_survives_memory_that_runs_out_networks_that_are_cut_and_slow_pods(tmp_path: Path) -> None:
    survive(tmp_path, [*SLOW, *(CONFINED if can_confine() else ())])


def survive(directory: Path, faults: list[Fault]) -> None:
    run = broken_run(directory, faults, {"spec.iterations": ITERATIONS})
    assert [one for one in run.recoveries if one.seconds is None] == []
    assert run.status == 0
    run.assert_nothing_lost()
    run.assert_trained_once()
