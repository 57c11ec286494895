# SPDX-License-Identifier: Apache-2.0
"""A fixed sequence that trainer and engine both score after a handoff: equal weights give equal log-probs."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from tandem_api.errors import MemberFailed
from tandem_api.spec.model import DType

_LENGTH = 32

MEAN_LIMIT = {DType.FLOAT32: 1e-3, DType.BFLOAT16: 0.1}
"""Largest mean difference that precision explains; one wrong tensor exceeds it by far."""


def probe_tokens(model: Path, seed: int) -> tuple[int, ...]:
    """Token ids drawn once from the model's vocabulary."""
    config = json.loads((model / "config.json").read_text())
    vocabulary = config.get("vocab_size") or config["text_config"]["vocab_size"]
    return tuple(random.Random(seed).choices(range(vocabulary), k=_LENGTH))


def compare(trainer: Sequence[float], engine: Sequence[float], dtype: DType) -> float:
    """Largest difference of the log-probs.

    Raises:
        MemberFailed: the mean difference is more than the precision explains.
    """
    differences = [abs(ours - theirs) for ours, theirs in zip(trainer, engine, strict=True)]
    mean = sum(differences) / len(differences)
    if not mean <= MEAN_LIMIT[dtype]:
        raise MemberFailed(
            f"after the handoff the engine's log-probs of the probe differ from the trainer's by {mean:.3g} on "
            "average; "
            f"expected at most {MEAN_LIMIT[dtype]:g} in {dtype}: the engine does not hold the trainer's weights"
        )
    return max(differences)
