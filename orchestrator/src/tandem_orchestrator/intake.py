# SPDX-License-Identifier: Apache-2.0
"""Whether a segment may be stored, and as what. Pure."""

import math

from tandem_api.messages.work import Segment
from tandem_orchestrator.buffer import SegmentRow
from tandem_orchestrator.groups import Book, Group, Rules
from tandem_orchestrator.leases import Holder


def objection(
    segment: Segment, sender: Holder, holder: Holder | None, book: Book, rules: Rules, vocabulary: int
) -> str | None:
    """Why a segment must not be stored, if so. ``holder`` is who has the trajectory's lease now."""
    if contradiction := _contradiction(segment, vocabulary):
        return contradiction
    if holder is not None and holder != sender:
        return f"member {holder.member} has this trajectory now"
    trajectory = book.trajectories.get(segment.trajectory)
    if trajectory is None or segment.offset < trajectory.length:
        return None  # The buffer knows whether it is a repetition of what is stored.
    return _overstepping(segment, book.group_of(trajectory), rules)


def row_of(segment: Segment, book: Book, rules: Rules) -> SegmentRow:
    """The segment as the buffer takes it."""
    trajectory = book.trajectories.get(segment.trajectory)
    if trajectory is None:
        return SegmentRow.of(segment, None)
    length = segment.offset + len(segment.tokens)
    return SegmentRow.of(segment, rules.state_after(segment.finish, length, book.group_of(trajectory).limit))


def _contradiction(segment: Segment, vocabulary: int) -> str | None:
    count = len(segment.tokens)
    if len(segment.logprobs) != count:
        return f"it has {count} tokens and {len(segment.logprobs)} log-probs"
    if sum(span.count for span in segment.versions) != count or any(span.count < 0 for span in segment.versions):
        return f"its version spans do not add up to its {count} tokens"
    if segment.offset < 0:
        return f"its offset is {segment.offset}"
    if count and not (min(segment.tokens) >= 0 and max(segment.tokens) < vocabulary):
        return f"a token id is outside of 0 to {vocabulary - 1}"
    if not all(map(math.isfinite, segment.logprobs)):
        return "a log-prob is not finite"
    return None


def _overstepping(segment: Segment, group: Group, rules: Rules) -> str | None:
    """Which bound of its rollout a segment breaks."""
    length = segment.offset + len(segment.tokens)
    if length > group.limit:
        return f"the response would have {length} tokens, {group.limit} are allowed"
    versions = [span.version for span in segment.versions if span.count]
    if versions and (max(versions) > rules.weight_version or min(versions) < 0):
        return f"weights {max(versions)} wrote it, the newest are {rules.weight_version}"
    if versions and not rules.partial and min(versions) < rules.weight_version:
        return f"weights {min(versions)} wrote it, this rollout is of weights {rules.weight_version} alone"
    return None
