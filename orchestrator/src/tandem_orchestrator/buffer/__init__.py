# SPDX-License-Identifier: Apache-2.0
"""The replay buffer: everything a run has generated, on SQLite (recipe.md, partial rollouts; phases.md, rules 5-7).

``schema`` says what is stored, ``rows`` what it looks like in Python, ``writer`` makes many small writes one fsync,
``store`` holds the operations. Nothing else in Tandem speaks SQL.
"""

from tandem_orchestrator.buffer.rows import (
    BatchRow,
    GroupRow,
    GroupState,
    Kind,
    Outcome,
    ScoreRow,
    SegmentRow,
    State,
    TrajectoryRow,
)
from tandem_orchestrator.buffer.schema import BufferFull
from tandem_orchestrator.buffer.store import Buffer

__all__ = [
    "BatchRow",
    "Buffer",
    "BufferFull",
    "GroupRow",
    "GroupState",
    "Kind",
    "Outcome",
    "ScoreRow",
    "SegmentRow",
    "State",
    "TrajectoryRow",
]
