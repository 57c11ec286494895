# SPDX-License-Identifier: Apache-2.0
"""Every kind of fault in every phase where it makes sense: a run of the real stack for each phase (`make soak`)."""

from pathlib import Path

import pytest
from broken_run import broken_run
from faults import Fault, Kind

from tandem_api.messages.phases import PhaseName

P = PhaseName
ANYWHERE = (
    Kind.TRAINER_KILLED,
    Kind.ENGINE_KILLED,
    Kind.SIDECAR_KILLED,
    Kind.POD_LOST,
    Kind.ORCHESTRATOR_KILLED,
    Kind.ETCD_KILLED,
    Kind.LEADERSHIP_LOST,
)
KINDS = {
    P.ROLLOUT: (*ANYWHERE, Kind.LEASE_LOST, Kind.SIDECAR_STOPPED, Kind.ENGINE_STOPPED),
    P.RELEASE: (*ANYWHERE, Kind.LEASE_LOST, Kind.SIDECAR_STOPPED),
    P.TRAIN: (*ANYWHERE, Kind.LEASE_LOST, Kind.SIDECAR_STOPPED, Kind.TRAINER_STOPPED),
    P.HANDOFF: (*ANYWHERE, Kind.LEASE_LOST, Kind.SIDECAR_STOPPED, Kind.ENGINE_STOPPED),
    P.RECOVER: ANYWHERE,
}
LEASE_AND_MORE = 15.0
TRAIN_DEADLINE_AND_MORE = 75.0
STOPPED = {Kind.SIDECAR_STOPPED: LEASE_AND_MORE, Kind.TRAINER_STOPPED: TRAIN_DEADLINE_AND_MORE}
ITERATIONS = 12


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("phase", KINDS, ids=str)
def test_a_run_survives_every_fault_in(phase: PhaseName, tmp_path: Path) -> None:
    faults = [Fault(kind, phase, seconds=STOPPED.get(kind, 0.0)) for kind in KINDS[phase]]
    run = broken_run(tmp_path, faults, {"spec.iterations": ITERATIONS})
    assert run.status == 0
    assert run.lost == []
    assert run.gaps() == []
    assert run.trained() == list(range(ITERATIONS))
    assert max(run.batches_of_trajectories().values()) == 1
