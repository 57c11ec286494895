# SPDX-License-Identifier: Apache-2.0
"""Sidecars pull work from the orchestrator over HTTP and bring back what was generated.

Routes, all under the job's bearer token:
``POST /v1/leases`` LeaseRequest -> LeaseGrant, ``POST /v1/segments`` SegmentBatch -> SegmentReceipt,
``GET /v1/batches/<iteration>`` -> safetensors (see :mod:`tandem_api.messages.batches`),
``GET /v1/warmup`` -> the warm-up rows in the same format, ``GET /v1/report`` -> the run so far as JSON.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tandem_api.base import Message


class LeaseRequest(Message):
    """sidecar -> orchestrator: give this member up to ``capacity`` trajectories of this epoch.

    ``wait`` seconds may pass before an empty answer (long poll). The request renews the member's older leases in
    ``running``, which it is still generating.
    """

    member: int
    incarnation: str
    epoch: int
    capacity: Annotated[int, Field(ge=0, le=4096)]
    wait: Annotated[float, Field(ge=0, le=30)] = 0.0
    running: tuple[str, ...] = ()


class Sampling(Message):
    """How a trajectory's tokens are drawn."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()


class Lease(Message):
    """orchestrator -> sidecar: go on with this trajectory.

    ``tokens`` is the prompt followed by what was generated in earlier segments; ``offset`` counts only the latter.
    At most ``max_new_tokens`` more may be generated. ``expires`` in seconds from now.
    """

    trajectory: str
    tokens: tuple[int, ...]
    offset: int
    max_new_tokens: int
    sampling: Sampling
    expires: float


class LeaseGrant(Message):
    """``epoch`` is the orchestrator's: a sidecar that sees another one than its own stops asking."""

    epoch: int
    leases: tuple[Lease, ...] = ()


class Finish(StrEnum):
    """Why a segment ends."""

    STOP = "Stop"
    LENGTH = "Length"
    ABORT = "Abort"
    REPETITION = "Repetition"


class VersionSpan(Message):
    """``count`` consecutive tokens that one weight version produced."""

    version: int
    count: int


class Segment(Message):
    """sidecar -> orchestrator: tokens that follow the first ``offset`` generated ones of a trajectory.

    ``logprobs`` (natural log, of the sampled token, temperature-scaled as drawn) has one entry a token.
    Identified by (trajectory, offset): sending it twice stores it once.
    """

    trajectory: str
    offset: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[VersionSpan, ...]
    finish: Finish


class SegmentBatch(Message):
    member: int
    incarnation: str
    epoch: int
    segments: Annotated[tuple[Segment, ...], Field(max_length=4096)]


class SegmentReceipt(Message):
    """The trajectories whose segments are now on disk (or were already); others were not wanted any more."""

    stored: tuple[str, ...]
    refused: dict[str, str] = {}
