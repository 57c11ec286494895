# SPDX-License-Identifier: Apache-2.0
"""The CustomResourceDefinition, made from the models: ``python -m tandem_api.schema [--check]``.

A CRD's schema is OpenAPI 3.0 without references, in which every object lists its properties ("structural"). Rules
become ``x-kubernetes-validations``, defaults are what the API server fills in, ``None`` means an absent field.
"""

from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from tandem_api import GROUP, KIND, VERSION
from tandem_api.generated import write_or_check
from tandem_api.rljob import MAX_NAME, NAME_PATTERN, NAME_RULE
from tandem_api.rules import Rule
from tandem_api.spec import RLJobSpec
from tandem_api.status import RLJobStatus

type Schema = dict[str, Any]

CRD_PATH = Path(__file__).parents[3] / "crds" / "rljobs.yaml"
RULES = "x-kubernetes-validations"
ANYTHING = "x-kubernetes-preserve-unknown-fields"

_HEADER = (
    "# SPDX-License-Identifier: Apache-2.0\n# Made by `python -m tandem_api.schema` from the models; change those.\n"
)
_INT64 = 2**63

_COLUMNS = (
    ("Phase", "string", ".status.phase", "What the job is doing.", 0),
    ("Iter", "integer", ".status.iteration", "Iterations completed.", 0),
    ("Reward", "number", ".status.reward", "Mean reward of the last batch.", 0),
    ("Ready", "string", ".status.hybridReady", "Hybrid pods that are ready, of all.", 0),
    ("Switch", "number", ".status.lastSwitch.toRolloutSeconds", "Seconds from training to rollout, last time.", 0),
    ("Restarts", "integer", ".status.restarts", "Recoveries from failures so far.", 0),
    ("Accuracy", "number", ".status.accuracy", "Accuracy on the held-out set.", 1),
    ("Version", "integer", ".status.weightVersion", "Version of the weights that the engines serve.", 1),
    ("Age", "date", ".metadata.creationTimestamp", "Time since the job was created.", 0),
)


@cache
def spec_schema() -> Schema:
    """The structural schema of ``spec``. Shared: do not change it."""
    return structural(RLJobSpec)


@cache
def status_schema() -> Schema:
    """The structural schema of ``status``, without defaults: it shows what was observed and nothing else."""
    return _without_defaults(structural(RLJobStatus))


def structural(model: type[BaseModel]) -> Schema:
    """The structural schema of a model, with the rules of it and of the models within it."""
    properties = {str(field.alias or name): _of_field(field) for name, field in model.model_fields.items()}
    required = [str(field.alias or name) for name, field in model.model_fields.items() if field.is_required()]
    rules: tuple[Rule, ...] = getattr(model, "RULES", ())
    schema: Schema = {"type": "object", "description": _paragraph(model.__doc__ or "")}
    if required:
        schema["required"] = required
    schema["properties"] = properties
    if rules:
        schema[RULES] = [_rule(rule) for rule in rules]
    return schema


def defaulted(value: Any, schema: Schema) -> Any:
    """``value`` as the API server stores it: nulls dropped and defaults filled in where the schema knows the field.

    Like the server it leaves alone what has the wrong type.
    """
    if isinstance(value, list) and "items" in schema:
        return [defaulted(item, schema["items"]) for item in value]
    if isinstance(value, dict) and "additionalProperties" in schema:
        return {key: item for key, item in value.items() if item is not None}
    if not isinstance(value, dict) or "properties" not in schema:
        return value
    properties = schema["properties"]
    kept = {key: item for key, item in value.items() if item is not None or key not in properties}
    filled = {key: part["default"] for key, part in properties.items() if key not in kept and "default" in part}
    return {key: defaulted(item, properties.get(key, {})) for key, item in (kept | filled).items()}


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition as it is applied."""
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [_column(*column) for column in _COLUMNS],
        "schema": {"openAPIV3Schema": _root()},
    }
    names = {
        "kind": KIND,
        "listKind": f"{KIND}List",
        "plural": "rljobs",
        "singular": "rljob",
        "shortNames": ["rlj"],
        "categories": ["all", "tandem"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"rljobs.{GROUP}"},
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }


def crd_yaml() -> str:
    """The text of crds/rljobs.yaml."""
    return _HEADER + yaml.dump(crd(), Dumper=_Plain, sort_keys=False, width=120, allow_unicode=True)


def _root() -> Schema:
    name = Rule(
        f"self.metadata.name.size() <= {MAX_NAME} && self.metadata.name.matches('{NAME_PATTERN}')",
        f"metadata.name {NAME_RULE}",
        "metadata.name",
    )
    return {
        "type": "object",
        "description": "A reinforcement learning run: hybrid pods in which a trainer and an engine take turns on the "
        "same accelerators.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of this schema: tandem-rl.dev/v1alpha1."},
            "kind": {"type": "string", "description": "RLJob."},
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": spec_schema() | {"description": "What is wanted."},
            "status": status_schema() | {"description": "What is, written by the operator."},
        },
        RULES: [_rule(name)],
    }


def _column(name: str, kind: str, path: str, description: str, priority: int) -> dict[str, Any]:
    column = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return column | ({"priority": priority} if priority else {})


def _rule(rule: Rule) -> dict[str, str]:
    path = {"fieldPath": f".{rule.field}"} if rule.field else {}
    return {"rule": rule.cel, "message": rule.message} | path


def _of_field(field: FieldInfo) -> Schema:
    schema = _of_type(field.annotation, tuple(field.metadata))
    if isinstance(field.json_schema_extra, dict):
        schema = schema | field.json_schema_extra
    if field.description:
        schema = {"description": field.description} | {k: v for k, v in schema.items() if k != "description"}
    default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, BaseModel):
        return schema | {"default": {}}
    # An absent list or fragment is as good as an empty one, and easier on the eye in what the server stores.
    if default is None or default in ((), {}):
        return schema
    return schema | {"default": _adapter(field.annotation, tuple(field.metadata)).dump_python(default, mode="json")}


def _of_type(annotation: Any, metadata: tuple[Any, ...]) -> Schema:
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
        return _of_type(annotation, metadata)
    if get_origin(annotation) is tuple:
        return {"type": "array", **_bounds(metadata), "items": _of_type(get_args(annotation)[0], ())}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return structural(annotation)
    return _openapi(_adapter(annotation, metadata).json_schema())


def _adapter(annotation: Any, metadata: tuple[Any, ...]) -> TypeAdapter[Any]:
    return TypeAdapter(Annotated[annotation, *metadata] if metadata else annotation)


def _bounds(metadata: tuple[Any, ...]) -> Schema:
    bounds: Schema = {}
    for entry in metadata:
        if isinstance(entry, annotated_types.MinLen):
            bounds["minItems"] = entry.min_length
        elif isinstance(entry, annotated_types.MaxLen):
            bounds["maxItems"] = entry.max_length
    return bounds


def _openapi(schema: Schema) -> Schema:
    """JSON Schema's spelling -> OpenAPI 3.0's, in which an object has either properties or additionalProperties."""
    schema = {key: value for key, value in schema.items() if key != "title"}
    if "properties" in schema:
        del schema["additionalProperties"]
        schema["properties"] = {key: _openapi(part) for key, part in schema["properties"].items()}
    for exclusive, bound, step in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        if exclusive not in schema:
            continue
        limit = schema.pop(exclusive)
        if schema["type"] == "integer":
            schema[bound] = limit + step
        else:
            schema |= {bound: limit, exclusive: True}
    if schema.get("type") == "integer":
        schema["format"] = "int64"
    return schema


def _without_defaults(schema: Schema) -> Schema:
    schema = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in schema:
        schema["properties"] = {key: _without_defaults(part) for key, part in schema["properties"].items()}
    if "items" in schema:
        schema["items"] = _without_defaults(schema["items"])
    return schema


def _paragraph(docstring: str) -> str:
    return " ".join(docstring.split("\n\n")[0].split())


class _Plain(yaml.SafeDumper):
    """Without anchors, which a reader of the schema would have to follow."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


if __name__ == "__main__":
    write_or_check(CRD_PATH, crd_yaml())
