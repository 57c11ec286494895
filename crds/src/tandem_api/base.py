# SPDX-License-Identifier: Apache-2.0
"""What every model of the contract has in common: camelCase on the wire, no unknown fields, immutable."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Contract(BaseModel):
    """Base of all models that cross a process boundary.

    Instances are frozen: a change is a new value (``model_copy(update=…)``), so what was read from etcd or a user
    cannot drift from what is written back.
    """

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="forbid", frozen=True
    )

    def wire(self) -> str:
        """This value as one line of JSON, as it travels."""
        return self.model_dump_json(by_alias=True, exclude_none=True)


class Message(Contract):
    """Base of what Tandem's processes send each other.

    Unknown fields are ignored, not refused: during an upgrade a newer peer may say more than this one understands.
    """

    # A loss can be NaN, and whoever reads of it must be able to.
    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="constants")
