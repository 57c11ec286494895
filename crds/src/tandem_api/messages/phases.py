# SPDX-License-Identifier: Apache-2.0
"""Orchestrator, sidecars and operator through etcd: the phase of a job and who has done its part of it."""

from enum import StrEnum

from tandem_api.base import Message
from tandem_api.scalars import Indices


class PhaseName(StrEnum):
    """What a job is doing, for all its pods at once."""

    START = "Start"
    WARMUP = "Warmup"
    ROLLOUT = "Rollout"
    RELEASE = "Release"
    TRAIN = "Train"
    HANDOFF = "Handoff"
    RECOVER = "Recover"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    @property
    def final(self) -> bool:
        """Whether nothing follows it."""
        return self in (PhaseName.SUCCEEDED, PhaseName.FAILED)


class DesiredState(StrEnum):
    """What the user wants of a job."""

    RUNNING = "Running"
    SUSPENDED = "Suspended"
    STOPPED = "Stopped"


class Desired(Message):
    """operator -> orchestrator. ``iterations`` and deadlines may grow while a job runs, hence the generation.

    ``checkpoint``: a checkpoint of at least so many iterations is wanted soon, besides those of
    ``checkpoint.everyIterations``. It names a state and no deed, so it may be said again and survives any restart.
    """

    state: DesiredState
    generation: int = 0
    checkpoint: int | None = None


class PhaseRecord(Message):
    """orchestrator -> everyone: the one current phase.

    ``epoch`` grows by one with every record ever written, so an epoch names one phase of one iteration in one world.
    ``world`` grows with every recovery. ``members`` are the indices that must ack. Times are Unix seconds;
    ``deadline`` is None where a phase has none. ``checkpoint`` names the checkpoint to load (Start, Recover);
    ``save`` asks the trainers for a checkpoint at the end of their part (Train, Warmup, Suspended). ``restarts`` counts
    the recoveries so far: it is kept here so that it outlives the orchestrator. ``iterations`` is how many there are to
    be, which may grow: all trainers must take the same number for theirs.
    """

    epoch: int
    iteration: int
    name: PhaseName
    weight_version: int
    world: int
    members: Indices
    started: float
    deadline: float | None = None
    checkpoint: str | None = None
    save: bool = False
    restarts: int = 0
    iterations: int | None = None
    reason: str | None = None


class Member(Message):
    """sidecar -> orchestrator: I am here. ``incarnation`` is unique to each start of the sidecar."""

    index: int
    pod: str
    uid: str
    incarnation: str
    address: str


class Step(Message):
    """One timed part of a member's work in a phase. ``start`` in Unix seconds."""

    name: str
    start: float
    seconds: float


class Outcome(StrEnum):
    DONE = "Done"
    FAILED = "Failed"


class Ack(Message):
    """sidecar -> orchestrator: this member's part of an epoch is done, or failed for good.

    ``start`` in Unix seconds (None: the sidecar is older and does not say), ``seconds`` from then to the ack.
    ``measured`` holds what was measured on the way, by name: bytes (``residualBytes``), losses, norms, seconds.
    ``digest`` is the manifest digest of the weights now served (Handoff); ``checkpoint`` what was saved (Train).
    """

    epoch: int
    index: int
    incarnation: str
    outcome: Outcome
    start: float | None = None
    seconds: float
    steps: tuple[Step, ...] = ()
    measured: dict[str, float] = {}
    digest: str | None = None
    checkpoint: str | None = None
    error: str | None = None


class WeightsRecord(Message):
    """sidecar 0 -> everyone: what one weight version is made of."""

    version: int
    digest: str
    bytes: int
    tensors: int


class BufferCounts(Message):
    """What the replay buffer holds now."""

    finished: int = 0
    partial: int = 0
    tokens: int = 0


class Switch(Message):
    """How long the last switches took, and what the engine still held after its release."""

    to_train_seconds: float = 0.0
    to_rollout_seconds: float = 0.0
    release_residual_bytes: int = 0


class Progress(Message):
    """orchestrator -> operator: what status shows beyond the phase; written at most once a second.

    ``buffer_full``: the job waits until the replay buffer has room. ``sandbox``: of each of the code sandbox's
    guarantees whether it holds, where there is a sandbox.
    """

    iteration: int = 0
    iterations: int = 0
    reward: float | None = None
    eval_accuracy: float | None = None
    tokens_per_second: float | None = None
    rollout_done: int = 0
    rollout_wanted: int = 0
    epoch_of_prompts: int = 0
    buffer: BufferCounts = BufferCounts()
    buffer_full: bool = False
    sandbox: dict[str, bool] = {}
    phase_seconds: dict[str, float] = {}
    last_switch: Switch = Switch()
    checkpoint_iteration: int | None = None
    checkpoint_path: str | None = None
    skipped_records: int = 0
    error: str | None = None
