# SPDX-License-Identifier: Apache-2.0
"""A pod's volumes as directories of this machine."""

from dataclasses import dataclass
from pathlib import Path

from tandem_api.errors import Problem, UserError
from tandem_cli.local.environment import object_data
from tandem_cli.local.manifests import Manifest, Manifests, dig
from tandem_cli.local.node import Node
from tandem_cli.local.rewriting import Rewriting

_GIVEN = {"hostPath", "configMap", "secret"}
_PROJECTED = {"configMap": ("ConfigMap", "name"), "secret": ("Secret", "secretName")}


@dataclass(frozen=True, slots=True)
class Volumes:
    """The volumes of one pod. ``number`` keeps its directories' paths short."""

    spec: Manifest
    number: int
    node: Node
    objects: Manifests

    def mounts(self, container: Manifest) -> dict[str, Path]:
        """Mount path -> place on this machine, for one container; the places exist.

        Raises:
            UserError: a mount names no volume, or local mode does not have that kind of volume.
        """
        by_name = {volume["name"]: volume for volume in self.spec.get("volumes") or []}
        places: dict[str, Path] = {}
        for mount in container.get("volumeMounts") or []:
            where = f"container {container['name']}, volumeMounts {mount['mountPath']}"
            if mount["name"] not in by_name:
                raise UserError(Problem(where, f"there is no volume {mount['name']}; the pod has {sorted(by_name)}"))
            volume = by_name[mount["name"]]
            place: Path = self._place(volume, container["name"]) / str(mount.get("subPath", ""))
            if _GIVEN.isdisjoint(volume) and not place.exists():
                place.mkdir(parents=True)
            places[mount["mountPath"].rstrip("/")] = place
        return places

    def empty_mounts(self, container: Manifest) -> frozenset[str]:
        """The mount paths of a container's emptyDirs."""
        empty = {volume["name"] for volume in self.spec.get("volumes") or [] if "emptyDir" in volume}
        mounts = container.get("volumeMounts") or []
        return frozenset(mount["mountPath"].rstrip("/") for mount in mounts if mount["name"] in empty)

    def fill(self, container: Manifest, rewriting: Rewriting) -> None:
        """Write the ConfigMaps and Secrets that a container mounts, as it is to see them."""
        mounted = {mount["name"] for mount in container.get("volumeMounts") or []}
        for volume in self.spec.get("volumes") or []:
            for key, (kind, name_field) in _PROJECTED.items():
                if key in volume and volume["name"] in mounted:
                    place = self._place(volume, container["name"])
                    self._project(volume[key], kind, volume[key][name_field], place, rewriting)

    def _place(self, volume: Manifest, container: str) -> Path:
        name: str = volume["name"]
        if "emptyDir" in volume:
            in_memory = dig(volume, "emptyDir", "medium") == "Memory"
            root = self.node.scratch.memory if in_memory else self.node.scratch.disk
            return root / str(self.number) / name
        if "configMap" in volume:
            return self.node.scratch.disk / str(self.number) / f"{container}.{name}"
        if "secret" in volume:
            return self.node.scratch.memory / str(self.number) / f"{container}.{name}"
        if "persistentVolumeClaim" in volume:
            return self.node.claim(str(volume["persistentVolumeClaim"]["claimName"]))
        if "hostPath" in volume:
            place = Path(str(volume["hostPath"]["path"]))
            if volume["hostPath"].get("type") == "DirectoryOrCreate":
                place.mkdir(parents=True, exist_ok=True)
            return place
        kinds = sorted(set(volume) - {"name"})
        raise UserError(Problem(f"volume {name}", f"local mode has no volumes of kind {', '.join(kinds)}"))

    def _project(self, source: Manifest, kind: str, name: str, place: Path, rewriting: Rewriting) -> None:
        if source.get("optional") and self.objects.find(kind, name) is None:
            return
        data = object_data(self.objects.one(kind, name, f"a volume of {kind} {name}"))
        items = {item["key"]: item["path"] for item in source.get("items") or []} or {key: key for key in data}
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        for key, path in items.items():
            if key not in data:
                raise UserError(Problem(f"{kind} {name}", f"has no key {key}; it has {sorted(data)}"))
            file = place / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600 if kind == "Secret" else 0o644)
            content = rewriting.document(data[key].decode()).encode() if kind == "ConfigMap" else data[key]
            file.write_bytes(content)
