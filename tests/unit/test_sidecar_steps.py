# SPDX-License-Identifier: Apache-2.0
"""When a member's part of a phase began, as the timeline tells it."""

import time

import pytest

from tandem_api.messages.phases import PhaseName, PhaseRecord
from tandem_orchestrator.ledger import timeline_lines
from tandem_sidecar.steps import Part


def test_a_part_ends_with_its_ack_though_its_first_step_came_late() -> None:
    part = Part(start=time.time() - 60, began=time.monotonic() - 60)
    with part.step("transfer"):
        acked = time.time()
    record = PhaseRecord(
        epoch=3, iteration=1, name=PhaseName.HANDOFF, weight_version=1, world=1, members=(0,), started=acked - 61
    )
    _, line = timeline_lines(record, {0: part.ack(3, 0, "a")}, acked)
    assert line["start"] + line["seconds"] == pytest.approx(acked, abs=20)
