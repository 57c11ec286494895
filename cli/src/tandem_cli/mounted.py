# SPDX-License-Identifier: Apache-2.0
"""Where the files that a container sees lie before any container runs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

_CLAIMS = ("/checkpoints", "/var/lib/tandem")


@dataclass(frozen=True, slots=True)
class Text:
    """A key of a ConfigMap that the manifest's own file holds."""

    name: str
    content: str


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Out of reach: in a claim, a Secret, or another volume that only the cluster has."""


type Place = Path | Text | Elsewhere


@dataclass(frozen=True, slots=True)
class Mounts:
    """The volumes that a job's pod template adds to containers, as far as they can be followed from here."""

    template: dict[str, Any]
    others: tuple[dict[str, Any], ...]
    containers: frozenset[str]

    def locate(self, path: str) -> Place:
        """Where ``path``, as the containers see it, lies. What no volume covers lies on this machine, at that path."""
        inside = PurePosixPath(path)
        if any(inside.is_relative_to(root) for root in _CLAIMS):
            return Elsewhere()
        covering = [mount for mount in self._mounts() if inside.is_relative_to(mount["mountPath"])]
        if not covering:
            return Path(path)
        mount = max(covering, key=lambda mount: len(PurePosixPath(mount["mountPath"]).parts))
        below = mount.get("subPath", "") / inside.relative_to(mount["mountPath"])
        return self._in_volume(self._volume(str(mount["name"])), below)

    def _mounts(self) -> Iterator[dict[str, Any]]:
        spec = _mapping(self.template.get("spec"))
        for container in (*_mappings(spec.get("containers")), *_mappings(spec.get("initContainers"))):
            if container.get("name") in self.containers:
                yield from (mount for mount in _mappings(container.get("volumeMounts")) if mount.get("mountPath"))

    def _volume(self, name: str) -> dict[str, Any]:
        volumes = _mappings(_mapping(self.template.get("spec")).get("volumes"))
        return next((volume for volume in volumes if volume.get("name") == name), {})

    def _in_volume(self, volume: dict[str, Any], below: PurePosixPath) -> Place:
        if host := _mapping(volume.get("hostPath")).get("path"):
            return Path(str(host)) / below
        source = _mapping(volume.get("configMap"))
        keys = {str(item.get("path")): str(item.get("key")) for item in _mappings(source.get("items"))}
        key = keys.get(str(below), str(below))
        for other in self.others:
            metadata, data = _mapping(other.get("metadata")), _mapping(other.get("data"))
            if other.get("kind") == "ConfigMap" and metadata.get("name") == source.get("name") and key in data:
                return Text(f"ConfigMap {source['name']}, {key}", str(data[key]))
        return Elsewhere()


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _mappings(value: Any) -> Iterable[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
