# SPDX-License-Identifier: Apache-2.0
"""What a lease's request has produced so far, and whether it has begun to repeat itself. Pure."""

from collections.abc import Sequence

from tandem_api.messages.work import Finish, Lease, Segment, VersionSpan
from tandem_api.repetition import RepetitionDetector
from tandem_api.spec.algorithm import Repetition
from tandem_sidecar.engine_client import Generation


class Response:
    """Collects the pieces that the engine streams for one lease.

    Life cycle: :meth:`add` until a piece has a finish, then :meth:`segment`. A request that is broken off sooner
    yields a segment too: of what had come, as an abort.

    A response that repeats itself ends at the token that shows it, however the pieces were cut; what came after is
    left out. Tokens of earlier segments count: a loop is found across them.
    """

    def __init__(self, lease: Lease, weight_version: int, repetition: Repetition | None) -> None:
        self._lease = lease
        self._weight_version = weight_version
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._versions: tuple[VersionSpan, ...] = ()
        self._finish = Finish.ABORT
        self._detector = _primed(lease, repetition) if repetition else None
        self._cut: int | None = None

    @property
    def repeats(self) -> bool:
        """Whether it repeats itself: what the engine goes on to generate is not wanted."""
        return self._cut is not None

    def add(self, piece: Generation) -> None:
        """Take the next piece. Pieces before the last carry no versions: weights do not change while one rolls out."""
        if self._detector is not None and self._cut is None:
            found = self._detector.first(piece.tokens)
            self._cut = None if found is None else len(self._tokens) + found
        self._tokens += piece.tokens
        self._logprobs += piece.logprobs
        if piece.finish is not None:
            self._finish, self._versions = piece.finish, piece.versions

    def segment(self) -> Segment:
        """All of it, as the orchestrator takes it."""
        count = len(self._tokens) if self._cut is None else self._cut
        versions = self._versions or (VersionSpan(version=self._weight_version, count=count),)
        return Segment(
            trajectory=self._lease.trajectory,
            offset=self._lease.offset,
            tokens=tuple(self._tokens[:count]),
            logprobs=tuple(self._logprobs[:count]),
            versions=_first(versions, count),
            finish=self._finish if self._cut is None else Finish.REPETITION,
        )


def _primed(lease: Lease, repetition: Repetition) -> RepetitionDetector:
    """A detector that has seen as much of the earlier segments as can matter."""
    detector = RepetitionDetector(repetition.ngram, repetition.times)
    seen = min(lease.offset, repetition.ngram * repetition.times)
    detector.first(lease.tokens[len(lease.tokens) - seen :])
    return detector


def _first(versions: Sequence[VersionSpan], count: int) -> tuple[VersionSpan, ...]:
    """The spans of the first ``count`` tokens."""
    kept: list[VersionSpan] = []
    for span in versions:
        if count <= 0:
            break
        kept.append(VersionSpan(version=span.version, count=min(span.count, count)))
        count -= span.count
    return tuple(kept)
