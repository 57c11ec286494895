# SPDX-License-Identifier: Apache-2.0
"""RLJobs as the API server sends them, read so that an operator of another version can still tell finished ones."""

from typing import Any

from pydantic import ValidationError

from tandem_api.errors import Problem, UserError
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import Desired, DesiredState
from tandem_api.rljob import CHECKPOINT_ANNOTATION, RLJobObject
from tandem_api.status import RLJobStatus

_STATUS_FIELDS = {field.alias or name for name, field in RLJobStatus.model_fields.items()}


def read(raw: dict[str, Any]) -> RLJobObject:
    """The job. Fields of status that this version does not know are left out, and who wrote which field.

    Raises:
        UserError: the spec or a known field of status is not of this version's schema.
    """
    status = {name: value for name, value in raw.get("status", {}).items() if name in _STATUS_FIELDS}
    try:
        metadata = {name: value for name, value in raw["metadata"].items() if name != "managedFields"}
        return RLJobObject.model_validate({**raw, "metadata": metadata, "status": status})
    except ValidationError as error:
        raise UserError(
            *(Problem(".".join(map(str, wrong["loc"])), wrong["msg"]) for wrong in error.errors())
        ) from error


def keys_of(job: RLJobObject) -> JobKeys:
    """Where the job's keys lie in etcd."""
    return JobKeys(job.metadata.namespace, job.metadata.name, job.metadata.uid)


def desired(job: RLJobObject, state: DesiredState) -> Desired:
    """What is wanted of the job's orchestrator; an annotation that is no number wants no checkpoint."""
    wish = job.metadata.annotations.get(CHECKPOINT_ANNOTATION, "")
    checkpoint = int(wish) if wish.isascii() and wish.isdigit() else None
    return Desired(state=state, generation=job.metadata.generation, checkpoint=checkpoint)


def newer(raw: dict[str, Any], known: RLJobObject) -> bool:
    """Whether ``raw`` is of a later resource version, which is a growing number, or another job of the same name."""
    metadata = raw["metadata"]
    return metadata["uid"] != known.metadata.uid or int(metadata["resourceVersion"]) > int(
        known.metadata.resource_version
    )
