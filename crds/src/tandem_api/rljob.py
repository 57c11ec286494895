# SPDX-License-Identifier: Apache-2.0
"""The RLJob as the API server keeps it: metadata, spec and status."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from tandem_api.base import Contract, Message
from tandem_api.spec import RLJobSpec
from tandem_api.status import RLJobStatus

MAX_NAME = 40
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_RULE = (
    "must be lower case letters, digits and hyphens, start with a letter, and have at most "
    f"{MAX_NAME} characters: Services, Jobs and pods carry it with a suffix"
)

CHECKPOINT_ANNOTATION = "tandem-rl.dev/checkpoint"
"""Set by a user (``kubectl tandem checkpoint``): a checkpoint of at least so many iterations is wanted soon."""


class ObjectMeta(Message):
    """metav1.ObjectMeta. Only what Tandem reads has a type of its own."""

    name: str
    generate_name: str | None = None
    namespace: str = "default"
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[dict[str, Any], ...] = ()
    managed_fields: tuple[dict[str, Any], ...] = ()
    self_link: str | None = None


class RLJobObject(Contract):
    """An RLJob, as ``kubectl get rlj NAME -o json`` prints it and as a manifest describes it."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, extra="forbid", frozen=True)

    api_version: Literal["tandem-rl.dev/v1alpha1"] = "tandem-rl.dev/v1alpha1"
    kind: Literal["RLJob"] = "RLJob"
    metadata: ObjectMeta
    spec: RLJobSpec = Field(description="What is wanted.")
    status: RLJobStatus = Field(default_factory=RLJobStatus, description="What is.")
