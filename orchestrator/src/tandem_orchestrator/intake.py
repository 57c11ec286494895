# SPDX-License-Identifier: Apache-2.0
"""Whether a segment makes sense, before it is stored. Pure."""

import math

from tandem_api.messages.work import Segment
from tandem_orchestrator.groups import Group, Rules


def incoherence(segment: Segment, vocabulary: int) -> str | None:
    """What contradicts itself within a segment."""
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


def overstepping(segment: Segment, group: Group, rules: Rules) -> str | None:
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
