# SPDX-License-Identifier: Apache-2.0
"""How responses are scored: one module a kind, ``scoring`` chooses among them, ``workers`` runs what may hang."""

from tandem_orchestrator.rewards.score import Score, Scorer, Unscored
from tandem_orchestrator.rewards.scoring import Scoring

__all__ = ["Score", "Scorer", "Scoring", "Unscored"]
