# SPDX-License-Identifier: Apache-2.0
"""Sidecar -> trainer rank over ``trainer-<local rank>.sock``: one JSON line a command, one JSON line back.

Every local rank gets the same command; what they do is collective. A command names its ``epoch``: the same command
of the same epoch, sent again after a lost connection, is answered from what was done the first time.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from tandem_api.base import Message


class Offload(Message):
    """Leave the device, now: a recovery begins. A rank that is busy with an older epoch ends itself instead, and its
    agent starts it anew: what it had begun waits for ranks that may be gone, and frees the device only by its end.
    """

    command: Literal["offload"] = "offload"
    epoch: int


class Load(Message):
    """Take the device, build the model, and load ``checkpoint`` (a path) or the job's model source."""

    command: Literal["load"] = "load"
    epoch: int
    checkpoint: str | None = None


class Warmup(Message):
    """Supervised epochs over the job's warm-up rows; ``save`` a checkpoint of iteration 0 afterwards."""

    command: Literal["warmup"] = "warmup"
    epoch: int
    save: bool = False


class TrainStep(Message):
    """One iteration: pull the batch of ``iteration`` from the orchestrator and update the policy.

    ``iterations`` is how many there are to be; absent: as many as when the trainer started.
    """

    command: Literal["step"] = "step"
    epoch: int
    iteration: int
    weight_version: int
    iterations: int | None = None
    save: bool = False


class Export(Message):
    """Serve the weights as ``weight_version`` to the engine workers of this pod, then let go of them.

    The reply's ``probe_logprobs`` are the trainer's log-probs of ``probe[1:]``, for comparison with the engine's.
    """

    command: Literal["export"] = "export"
    epoch: int
    weight_version: int
    timeout: float
    probe: tuple[int, ...] = ()


class Checkpoint(Message):
    """Save the state after ``iteration`` (it is a no-op if that checkpoint is there already)."""

    command: Literal["checkpoint"] = "checkpoint"
    epoch: int
    iteration: int


class FinishRun(Message):
    """Write the Hugging Face export if ``export`` is set, then exit 0."""

    command: Literal["finish"] = "finish"
    epoch: int
    export: bool


TrainerCommand = Annotated[
    Offload | Load | Warmup | TrainStep | Export | Checkpoint | FinishRun, Field(discriminator="command")
]
trainer_command: TypeAdapter[TrainerCommand] = TypeAdapter(TrainerCommand)


class TrainerReply(Message):
    """trainer rank -> sidecar. Exactly one of ``error`` and the rest is set.

    ``measured``: numbers by camelCase name (loss, gradNorm, logprobDiffMean, logprobDiffMax, tokens, bytes);
    ``seconds``: parts of the work by name; ``digest`` of the exported manifest; ``path`` of a checkpoint or export.
    """

    error: str | None = None
    measured: dict[str, float] = {}
    seconds: dict[str, float] = {}
    digest: str | None = None
    path: str | None = None
    probe_logprobs: tuple[float, ...] = ()
