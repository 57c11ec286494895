# SPDX-License-Identifier: Apache-2.0
"""What a minibatch is trained towards. One objective a file, each a pure function of log-probs and rewards."""

from tandem_api.errors import Problem, UserError
from tandem_api.spec.algorithm import AlgorithmSpec
from tandem_trainer.objectives.contract import Credit, Objective, Terms
from tandem_trainer.objectives.mirror_descent import MirrorDescentObjective
from tandem_trainer.objectives.sft import SupervisedObjective

__all__ = ["Credit", "MirrorDescentObjective", "Objective", "SupervisedObjective", "Terms", "objective_of"]


def objective_of(algorithm: AlgorithmSpec) -> Objective:
    """The objective that a job's ``algorithm`` names."""
    if algorithm.mirror_descent:
        return MirrorDescentObjective(algorithm.mirror_descent.tau)
    raise UserError(Problem("spec.algorithm", "names no objective; set mirrorDescent"))
