# SPDX-License-Identifier: Apache-2.0
"""What the buffer stores, as Python values."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from tandem_api.messages.work import Finish, Segment


class Kind(StrEnum):
    """What a group of trajectories is for."""

    TRAIN = "train"
    EVALUATION = "evaluation"


class GroupState(StrEnum):
    """``OPEN`` until it is in a batch (or its evaluation is counted), or given up."""

    OPEN = "open"
    BATCHED = "batched"
    DROPPED = "dropped"


class State(StrEnum):
    """A trajectory's way: waiting -> (partial ->) finished -> scored -> batched; or dropped, with a reason."""

    WAITING = "waiting"
    PARTIAL = "partial"
    FINISHED = "finished"
    SCORED = "scored"
    BATCHED = "batched"
    DROPPED = "dropped"


def trajectory_id(group: int, sample: int) -> str:
    """The name of a trajectory on the wire and in the buffer."""
    return f"{group}-{sample}"


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One draw of a prompt: ``samples`` trajectories that are compared with each other."""

    id: int
    kind: Kind
    prompt: str
    iteration: int
    samples: int


@dataclass(slots=True)
class TrajectoryRow:
    """A trajectory without its tokens. ``length`` counts generated tokens, ``oldest`` is the oldest weight version.

    ``spent`` are the tokens generated in iteration ``spent_in``, which the token budget limits.
    """

    id: str
    group: int
    sample: int
    state: State
    length: int = 0
    oldest: int | None = None
    spent: int = 0
    spent_in: int = 0
    finish: Finish | None = None
    score: float | None = None
    correct: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A segment as it is stored: tokens and spans little-endian int32, log-probs float32."""

    trajectory: str
    offset: int
    count: int
    tokens: bytes
    logprobs: bytes
    versions: bytes
    oldest: int | None
    finish: Finish
    state: State | None

    @staticmethod
    def of(segment: Segment, state: State | None) -> "SegmentRow":
        """Pack a segment; ``state`` is what its trajectory is in once the segment is stored.

        ``None`` where nobody asked for the segment: it is then stored never, but found if it is there already.
        """
        spans = [number for span in segment.versions for number in (span.version, span.count)]
        return SegmentRow(
            segment.trajectory,
            segment.offset,
            len(segment.tokens),
            _packed(segment.tokens),
            np.array(segment.logprobs, "<f4").tobytes(),
            _packed(spans),
            min((span.version for span in segment.versions), default=None),
            segment.finish,
            state,
        )


class Outcome(StrEnum):
    """What became of a segment. ``STORED`` and ``REPEATED`` are both safe on disk."""

    STORED = "stored"
    REPEATED = "repeated"
    UNKNOWN = "no such trajectory"
    CLOSED = "the trajectory is finished or was given up"
    CONFLICT = "other tokens are stored at this offset"
    GAP = "tokens before this offset are missing"

    @property
    def safe(self) -> bool:
        return self in (Outcome.STORED, Outcome.REPEATED)


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """The verdict on a finished trajectory: a value, or the reason why there is none."""

    trajectory: str
    value: float | None
    correct: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch: ``members`` are (trajectory, shaped reward, index of the group) in the order they are served."""

    iteration: int
    members: tuple[tuple[str, float, int], ...]
    summary: str
    digest: str
    durable: bool = False


@dataclass(frozen=True, slots=True)
class Generated:
    """The generated tokens of one trajectory: int32, float32, int32, each of shape [length]."""

    tokens: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray

    @staticmethod
    def joined(pieces: Sequence[tuple[bytes, bytes, bytes]]) -> "Generated":
        """From the packed segments in order of offset."""
        spans = _spans(b"".join(piece[2] for piece in pieces))
        return Generated(
            np.frombuffer(b"".join(piece[0] for piece in pieces), "<i4"),
            np.frombuffer(b"".join(piece[1] for piece in pieces), "<f4"),
            np.repeat(spans[:, 0], spans[:, 1]),
        )

    @staticmethod
    def spans(packed: bytes) -> list[tuple[int, int]]:
        """(weight version, tokens) of each span of a segment."""
        return [(int(version), int(count)) for version, count in _spans(packed)]


def _spans(packed: bytes) -> np.ndarray:
    return np.frombuffer(packed, "<i4").reshape(-1, 2)


def _packed(numbers: Sequence[int]) -> bytes:
    return np.array(numbers, "<i4").tobytes()
