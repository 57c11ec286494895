# SPDX-License-Identifier: Apache-2.0
"""RLJob.spec, the user's interface. One module a concern; this one puts them together."""

from typing import ClassVar

from pydantic import Field

from tandem_api.base import Contract
from tandem_api.rules import FIXED, Rule, immutable, unique_names
from tandem_api.spec.algorithm import AlgorithmSpec, RolloutSpec
from tandem_api.spec.data import DataSpec
from tandem_api.spec.hybrid import EngineSpec, HybridSpec, TrainerSpec
from tandem_api.spec.lifecycle import CheckpointSpec, HandoffSpec, OrchestratorSpec, RunPolicy, ScheduleSpec
from tandem_api.spec.model import ModelSpec
from tandem_api.spec.rewards import Reward

_RANKS = "(has(self.hybrid.accelerators) ? self.hybrid.accelerators.count : self.hybrid.ranksPerPod)"
_MODEL_PARALLEL = (
    "self.trainer.parallelism.tensor * self.trainer.parallelism.pipeline * self.trainer.parallelism.context"
)


class RLJobSpec(Contract):
    """One reinforcement learning run."""

    iterations: int = Field(
        gt=0, le=1_000_000, description="Rounds of rollout and training. May be raised while the job runs."
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of everything drawn at random.")
    model: ModelSpec = Field(description="The model that is trained.")
    data: DataSpec = Field(description="Prompts, the warm-up set and the held-out set.")
    hybrid: HybridSpec = Field(default_factory=HybridSpec, description="The hybrid pods.")
    trainer: TrainerSpec = Field(default_factory=TrainerSpec, description="The Megatron-core trainer.")
    engine: EngineSpec = Field(default_factory=EngineSpec, description="The vLLM engine.")
    orchestrator: OrchestratorSpec = Field(default_factory=OrchestratorSpec, description="The central master's pod.")
    rollout: RolloutSpec = Field(default_factory=RolloutSpec, description="What is generated in an iteration.")
    algorithm: AlgorithmSpec = Field(description="The objective, reward shaping and prompt sampling.")
    rewards: tuple[Reward, ...] = Field(min_length=1, max_length=32, description="How responses are scored.")
    handoff: HandoffSpec = Field(default_factory=HandoffSpec, description="How weights go from trainer to engine.")
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec, description="When and where state is saved.")
    schedule: ScheduleSpec = Field(default_factory=ScheduleSpec, description="Deadlines of phases.")
    run_policy: RunPolicy = Field(default_factory=RunPolicy, description="What may happen to the job as a whole.")

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"(self.hybrid.replicas * {_RANKS}) % ({_MODEL_PARALLEL}) == 0",
            "tensor x pipeline x context must divide the number of trainer ranks "
            "(hybrid.replicas x accelerators.count, or x ranksPerPod on CPU)",
            "trainer.parallelism",
        ),
        Rule(
            f"(self.hybrid.replicas * {_RANKS}) % "
            "(self.trainer.parallelism.expert * self.trainer.parallelism.pipeline) == 0",
            "expert x pipeline must divide the number of trainer ranks",
            "trainer.parallelism.expert",
        ),
        Rule(
            "self.trainer.optimizer.finalLearningRate <= self.trainer.optimizer.learningRate",
            "finalLearningRate must not exceed learningRate: the learning rate decays towards it",
            "trainer.optimizer.finalLearningRate",
        ),
        Rule(
            f"{_RANKS} % self.engine.tensorParallel == 0",
            "engine.tensorParallel must divide the accelerators of a pod (or ranksPerPod on CPU), and not exceed them",
            "engine.tensorParallel",
        ),
        Rule(
            "!has(self.rollout.tokenBudget) || self.rollout.tokenBudget <= self.rollout.maxTokens",
            "tokenBudget must not exceed maxTokens: it is a trajectory's share of one iteration",
            "rollout.tokenBudget",
        ),
        Rule(
            "self.rollout.maxTokens < self.engine.maxModelLen",
            "maxTokens must be below engine.maxModelLen, which holds the prompt as well",
            "rollout.maxTokens",
        ),
        Rule(
            "!has(self.algorithm.mirrorDescent) || !has(self.algorithm.mirrorDescent.batchPrompts) || "
            "self.algorithm.mirrorDescent.batchPrompts <= self.rollout.promptsPerIteration",
            "batchPrompts must not exceed rollout.promptsPerIteration",
            "algorithm.mirrorDescent.batchPrompts",
        ),
        unique_names("rewards"),
        Rule("self.iterations >= oldSelf.iterations", "iterations may only be raised", "iterations"),
        Rule(
            "self.checkpoint.everyIterations == oldSelf.checkpoint.everyIterations && "
            "self.checkpoint.size == oldSelf.checkpoint.size && self.checkpoint.export == oldSelf.checkpoint.export && "
            "has(self.checkpoint.volume) == has(oldSelf.checkpoint.volume) && (!has(self.checkpoint.volume) || "
            "self.checkpoint.volume == oldSelf.checkpoint.volume)",
            "of checkpoint only keep may change once the job exists",
            "checkpoint",
        ),
        Rule(
            "self.runPolicy.maxRestarts == oldSelf.runPolicy.maxRestarts",
            f"maxRestarts {FIXED}",
            "runPolicy.maxRestarts",
        ),
        *immutable(
            "seed",
            "model",
            "data",
            "hybrid",
            "trainer",
            "engine",
            "orchestrator",
            "rollout",
            "algorithm",
            "rewards",
            "handoff",
        ),
    )

    @property
    def ranks_per_pod(self) -> int:
        """Trainer ranks in each hybrid pod."""
        return self.hybrid.accelerators.count if self.hybrid.accelerators else self.hybrid.ranks_per_pod

    @property
    def world(self) -> int:
        """Trainer ranks in all."""
        return self.hybrid.replicas * self.ranks_per_pod

    @property
    def samples_per_iteration(self) -> int:
        """Responses in a training batch."""
        return self.rollout.prompts_per_iteration * self.rollout.samples_per_prompt
