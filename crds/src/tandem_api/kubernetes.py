# SPDX-License-Identifier: Apache-2.0
"""Pieces of Kubernetes' own API that an RLJob carries: dictionaries here, checked where a slip is likely."""

import re
from typing import Annotated, Any, NotRequired, TypedDict

from pydantic import AfterValidator, ConfigDict, Field, GetCoreSchemaHandler, WithJsonSchema, with_config
from pydantic_core import CoreSchema

from tandem_api.scalars import Fragment

_AMOUNT = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?[0-9]+))?$"
_LONGEST_AMOUNT = 64


class Shaped:
    """Validates a dictionary as a TypedDict; it stays a dictionary, holding what was written and nothing else."""

    def __init__(self, shape: type) -> None:
        self.shape = shape

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(self.shape)


def _amount(value: Any) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) <= _LONGEST_AMOUNT and re.fullmatch(_AMOUNT, value):
        return value
    raise ValueError("must be a quantity such as 2, 500m or 8Gi; put fractions in quotes")


Amount = Annotated[
    Any,
    AfterValidator(_amount),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": _LONGEST_AMOUNT,
            "pattern": _AMOUNT,
            "x-kubernetes-int-or-string": True,
        }
    ),
]
"""A Kubernetes quantity of any resource, as it is written."""


@with_config(ConfigDict(extra="forbid"))
class _EnvVar(TypedDict):
    name: Annotated[str, Field(min_length=1, max_length=256, description="Name of the variable.")]
    value: NotRequired[Annotated[str, Field(max_length=32768, description="Its value, a string.")]]
    valueFrom: NotRequired[Annotated[Fragment, Field(description="Where its value comes from, as in a pod.")]]


@with_config(ConfigDict(extra="forbid"))
class _Resources(TypedDict, total=False):
    requests: Annotated[dict[str, Amount], Field(description="What the scheduler sets aside, by resource name.")]
    limits: Annotated[dict[str, Amount], Field(description="What the container may use, by resource name.")]


@with_config(ConfigDict(extra="forbid"))
class _PodOverlay(TypedDict, total=False):
    metadata: Annotated[Fragment, Field(description="Labels and annotations.")]
    spec: Annotated[Fragment, Field(description="Pod spec: nodeSelector, tolerations, volumes and so on.")]


Environment = tuple[Annotated[dict[str, Any], Shaped(_EnvVar)], ...]
"""Environment variables of a container."""

Resources = Annotated[dict[str, Any], Shaped(_Resources)]
"""Resource requests and limits of a container."""

PodOverlay = Annotated[dict[str, Any], Shaped(_PodOverlay)]
"""Metadata and spec laid over a pod template."""
