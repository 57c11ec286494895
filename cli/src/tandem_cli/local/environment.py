# SPDX-License-Identifier: Apache-2.0
"""A container's environment variables: literal, from fields, Secrets and ConfigMaps, with $(VAR) expansion."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tandem_api.errors import Problem, UserError
from tandem_cli.local.manifests import Manifest, Manifests, dig
from tandem_cli.local.rewriting import Rewriting

_REFERENCE = re.compile(r"\$(?:\$|\(([^)$]+)\))")
_KEYED_FIELD = re.compile(r"metadata\.(annotations|labels)\['([^']+)'\]")


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What the downward API tells a container of its pod."""

    name: str
    namespace: str
    uid: str
    address: str
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def field(self, path: str) -> str:
        """The value of a fieldRef.

        Raises:
            UserError: local mode does not know the field.
        """
        if match := _KEYED_FIELD.fullmatch(path):
            return (self.annotations if match[1] == "annotations" else self.labels).get(match[2], "")
        plain = {
            "metadata.name": self.name,
            "metadata.namespace": self.namespace,
            "metadata.uid": self.uid,
            "status.podIP": self.address,
            "status.podIPs": self.address,
            "status.hostIP": self.address,
            "spec.nodeName": "local",
        }
        if path not in plain:
            raise UserError(Problem("fieldRef.fieldPath", f"local mode does not know {path}; it knows {sorted(plain)}"))
        return plain[path]


@dataclass(frozen=True, slots=True)
class Variables:
    """``declared``: a container's variables as in a cluster, which ``$(VAR)`` refers to. ``seen``: by processes here.

    What comes from fields, Secrets and ConfigMaps is the same in both.
    """

    declared: Mapping[str, str]
    seen: Mapping[str, str]


def variables(container: Manifest, pod: PodFacts, objects: Manifests, rewriting: Rewriting) -> Variables:
    """The variables that a container's template sets, in order.

    Raises:
        UserError: something they are taken from is not there.
    """
    declared: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        declared |= _whole_object(source, objects)
    seen = dict(declared)
    for item in container.get("env") or []:
        if "valueFrom" not in item:
            declared[item["name"]] = expand(str(item.get("value", "")), declared)
            seen[item["name"]] = rewriting.text(declared[item["name"]])
        elif (value := _from(item, pod, objects)) is not None:
            declared[item["name"]] = seen[item["name"]] = value
    return Variables(declared, seen)


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace ``$(VAR)`` as Kubernetes does: ``$$`` stands for ``$``, an unknown variable stays as written."""

    def replacement(match: re.Match[str]) -> str:
        return "$" if match[1] is None else values.get(match[1], match[0])

    return _REFERENCE.sub(replacement, text)


def object_data(item: Manifest) -> dict[str, bytes]:
    """The files of a ConfigMap or Secret."""
    if item["kind"] == "Secret":
        decoded = {key: base64.b64decode(value) for key, value in (item.get("data") or {}).items()}
        return decoded | {key: value.encode() for key, value in (item.get("stringData") or {}).items()}
    binary = {key: base64.b64decode(value) for key, value in (item.get("binaryData") or {}).items()}
    return {key: value.encode() for key, value in (item.get("data") or {}).items()} | binary


def _from(item: Manifest, pod: PodFacts, objects: Manifests) -> str | None:
    where = f"env {item['name']}"
    source: dict[str, Any] = item["valueFrom"]
    if path := dig(source, "fieldRef", "fieldPath"):
        return pod.field(path)
    for reference, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
        if reference in source:
            return _key(source[reference], kind, objects, where)
    raise UserError(Problem(where, f"local mode cannot take a value from {', '.join(source)}"))


def _key(reference: Manifest, kind: str, objects: Manifests, where: str) -> str | None:
    if reference.get("optional") and objects.find(kind, reference["name"]) is None:
        return None
    data = object_data(objects.one(kind, reference["name"], where))
    if reference["key"] in data:
        return data[reference["key"]].decode()
    if reference.get("optional"):
        return None
    raise UserError(Problem(where, f"{kind} {reference['name']} has no key {reference['key']}; it has {sorted(data)}"))


def _whole_object(source: Manifest, objects: Manifests) -> dict[str, str]:
    prefix = source.get("prefix", "")
    for reference, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
        if reference in source:
            data = object_data(objects.one(kind, source[reference]["name"], "envFrom"))
            return {prefix + key: value.decode() for key, value in data.items()}
    raise UserError(Problem("envFrom", f"local mode cannot take variables from {', '.join(source)}"))
