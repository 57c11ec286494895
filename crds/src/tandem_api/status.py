# SPDX-License-Identifier: Apache-2.0
"""RLJob.status: what a user sees of a run."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from tandem_api.base import Contract


class JobPhase(StrEnum):
    """``status.phase``: the phases of a running job, and what is before, between and after them."""

    PENDING = "Pending"
    STARTING = "Starting"
    WARMUP = "Warmup"
    ROLLOUT = "Rollout"
    RELEASE = "Release"
    TRAIN = "Train"
    HANDOFF = "Handoff"
    RECOVERING = "Recovering"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(StrEnum):
    SCHEDULED = "Scheduled"
    READY = "Ready"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class Condition(Contract):
    """A metav1.Condition."""

    type: ConditionType = Field(description="Kind of condition.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    observed_generation: int = Field(0, ge=0, description="Generation of the RLJob that this was judged on.")
    last_transition_time: str = Field(description="When status last changed, RFC 3339.")
    reason: str = Field(
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=1024, description="One word for programs."
    )
    message: str = Field("", max_length=32768, description="A sentence for people.")


class SwitchStatus(Contract):
    """The last change of hands of the accelerators."""

    to_train_seconds: float = Field(0.0, description="From the end of rollout to the trainer at work, in seconds.")
    to_rollout_seconds: float = Field(0.0, description="From the end of training to the engines at work, in seconds.")
    release_residual_bytes: int = Field(
        0, description="Most device memory that an engine still held after its release."
    )


class PhaseSeconds(Contract):
    """Time spent in each phase so far, in seconds."""

    start: float = Field(0.0, description="Engines starting, trainers loading.")
    warmup: float = Field(0.0, description="Supervised warm-up.")
    rollout: float = Field(0.0, description="Rollout.")
    release: float = Field(0.0, description="Engines giving back the device.")
    train: float = Field(0.0, description="Training.")
    handoff: float = Field(0.0, description="Weights into the engines.")
    recover: float = Field(0.0, description="Recovery from failures.")


class BufferStatus(Contract):
    """The replay buffer."""

    finished: int = Field(0, description="Finished trajectories waiting for a batch.")
    partial: int = Field(0, description="Unfinished trajectories.")
    tokens: int = Field(0, description="Tokens of both.")


class SandboxStatus(Contract):
    """What the sandbox that scores programs was found to guarantee on its node. What it must is always held."""

    held: tuple[str, ...] = Field((), description="Guarantees that hold.")
    lacking: tuple[str, ...] = Field((), description="Guarantees that do not.")


class CheckpointStatus(Contract):
    """The newest checkpoint that is safe on disk."""

    iteration: int = Field(description="Iteration after which it was saved.")
    path: str = Field(description="Directory within the checkpoint volume.")


class RLJobStatus(Contract):
    """What is known of a run."""

    phase: JobPhase = Field(JobPhase.PENDING, description="What the job is doing.")
    iteration: int = Field(0, description="Iterations completed.")
    weight_version: int = Field(0, description="Version of the weights that the engines serve.")
    epoch: int = Field(0, description="Epoch of the phase; grows with every change of phase.")
    reward: float | None = Field(None, description="Mean reward of the last batch.")
    accuracy: float | None = Field(None, description="Accuracy on the held-out set when last evaluated.")
    hybrid_ready: str = Field("0/0", description="Hybrid pods that are ready, of all.")
    restarts: int = Field(0, description="Recoveries from failures so far.")
    disruptions: int = Field(
        0, description="New starts that do not count as restarts: after drains, preemptions and resumptions."
    )
    start_time: str | None = Field(None, description="When the job first started, RFC 3339.")
    completion_time: str | None = Field(None, description="When it ended, RFC 3339.")
    last_switch: SwitchStatus = Field(default_factory=SwitchStatus, description="The last change of hands.")
    phase_seconds: PhaseSeconds = Field(default_factory=PhaseSeconds, description="Time spent in each phase.")
    buffer: BufferStatus = Field(default_factory=BufferStatus, description="The replay buffer.")
    skipped_records: int = Field(0, description="Records left out because of data.skipInvalid.")
    sandbox: SandboxStatus | None = Field(None, description="The code sandbox, where a reward uses it.")
    checkpoint: CheckpointStatus | None = Field(None, description="The newest durable checkpoint.")
    conditions: tuple[Condition, ...] = Field(
        (),
        description="Standard conditions.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    observed_generation: int = Field(0, description="Generation of the RLJob that this status describes.")
