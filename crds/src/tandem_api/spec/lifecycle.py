# SPDX-License-Identifier: Apache-2.0
"""Checkpoints, deadlines, and what may happen to a job as a whole."""

from enum import StrEnum

from pydantic import Field

from tandem_api.base import Contract
from tandem_api.kubernetes import Environment, PodOverlay, Resources
from tandem_api.scalars import Seconds, SomeBytes


class Verify(StrEnum):
    """What the engine checks of the weights it is handed."""

    NAMES = "Names"
    CHECKSUMS = "Checksums"


class HandoffSpec(Contract):
    """How weights go from trainer to engine."""

    bucket: SomeBytes = Field(2**30, description="Size of a shared-memory bucket; two are alive at a time.")
    verify: Verify = Field(
        Verify.NAMES,
        description="Names: names, shapes, types and their digest. Checksums: every byte as well.",
    )


class CheckpointVolume(Contract):
    """Where checkpoints are kept."""

    claim_name: str = Field(min_length=1, max_length=253, description="PersistentVolumeClaim in the job's namespace.")


class CheckpointSpec(Contract):
    """When and where training state is saved."""

    every_iterations: int = Field(
        10, gt=0, le=1_000_000, description="Save after every n-th iteration, and at the end."
    )
    keep: int = Field(3, gt=0, le=1000, description="Newest checkpoints that are kept.")
    volume: CheckpointVolume | None = Field(
        None, description="Claim that all hybrid pods mount; absent: Tandem makes one of checkpoint.size for the job."
    )
    size: SomeBytes = Field(10 * 2**30, description="Size of the claim that Tandem makes.")
    export: bool = Field(True, description="Write the final weights in Hugging Face's layout on success.")


class PhaseDeadlines(Contract):
    """A phase that takes longer is given up, and the job recovers."""

    start: Seconds = Field(1800.0, description="Engines up and trainers ready.")
    warmup: Seconds = Field(86400.0, description="The supervised warm-up.")
    rollout: Seconds = Field(7200.0, description="A rollout; what is finished by then is trained on.")
    release: Seconds = Field(120.0, description="Engines give back the device.")
    train: Seconds = Field(3600.0, description="An iteration's update, with its checkpoint.")
    handoff: Seconds = Field(300.0, description="Weights into the engines.")


class ScheduleSpec(Contract):
    """Deadlines of phases."""

    phase_deadlines: PhaseDeadlines = Field(default_factory=PhaseDeadlines, description="Longest time of each phase.")


class RunPolicy(Contract):
    """What may happen to the job as a whole."""

    suspend: bool = Field(
        False, description="Drain, save a checkpoint and free the accelerators until this is false again."
    )
    ttl_seconds_after_finished: int | None = Field(
        None, ge=0, le=2**31 - 1, description="Delete the RLJob this long after it ended; absent: never."
    )
    active_deadline_seconds: int | None = Field(
        None, gt=0, le=2**31 - 1, description="Fail a job that runs longer than this."
    )
    max_restarts: int = Field(
        10, ge=0, le=1_000_000, description="Recoveries from failures before the job fails; disruptions do not count."
    )


class OrchestratorSpec(Contract):
    """The central master's pod."""

    image: str | None = Field(None, max_length=512, description="Container image; absent: the operator's own version.")
    resources: Resources = Field(default_factory=dict, description="Kubernetes resource requests and limits.")
    env: Environment = Field((), max_length=256, description="Kubernetes environment variables added to it.")
    template: PodOverlay = Field(
        default_factory=dict,
        description="Pod metadata and spec laid over the generated pod template, for example volumes with prompts.",
    )
    storage: SomeBytes = Field(10 * 2**30, description="Size of the replay buffer's volume.")
    storage_class_name: str | None = Field(None, max_length=253, description="StorageClass of it; absent: the default.")
