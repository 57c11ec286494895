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
MEAN_LIMIT_QUANTISED = 0.3
"""The same for an engine that quantises what it loads to 8 bits (docs/performance.md)."""


def probe_tokens(model: Path, seed: int) -> tuple[int, ...]:
    """Token ids drawn once from the model's vocabulary."""
    config = json.loads((model / "config.json").read_text())
    vocabulary = config.get("vocab_size") or config["text_config"]["vocab_size"]
    return tuple(random.Random(seed).choices(range(vocabulary), k=_LENGTH))


def mean_limit(dtype: DType, engine_arguments: Sequence[str]) -> float:
    """The limit for a model of this dtype in an engine with these arguments of its own (spec.engine.extraArgs)."""
    quantised = any(argument.split("=")[0] in ("--quantization", "-q") for argument in engine_arguments)
    return max(MEAN_LIMIT[dtype], MEAN_LIMIT_QUANTISED) if quantised else MEAN_LIMIT[dtype]


def compare(trainer: Sequence[float], engine: Sequence[float], limit: float) -> float:
    """Largest difference of the log-probs.

    Raises:
        MemberFailed: the mean difference is more than the limit, which is what precision explains.
    """
    differences = [abs(ours - theirs) for ours, theirs in zip(trainer, engine, strict=True)]
    mean = sum(differences) / len(differences)
    if not mean <= limit:
        raise MemberFailed(
            f"after the handoff the engine's log-probs of the probe differ from the trainer's by {mean:.3g} on "
            f"average; expected at most {limit:g}: the engine does not hold the trainer's weights"
        )
    return max(differences)
