# SPDX-License-Identifier: Apache-2.0
"""Laying a user's pod template over a generated one, as kubectl's strategic merge would.

Maps merge by key, lists of named things by their merge key, other lists are replaced. ``null`` removes a key.
"""

from typing import Any

from tandem_operator.plan.identity import Manifest

_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "resourceClaims": "name",
    "claims": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}


def overlay(template: Manifest, patch: Manifest) -> Manifest:
    """``template`` with ``patch`` laid over it; neither is changed.

    A patch of a container that is generated as a native sidecar may stand among ``containers``, where a user looks
    for it.
    """
    return _merge_maps(template, _sidecars_in_place(template, patch))


def _sidecars_in_place(template: Manifest, patch: Manifest) -> Manifest:
    spec = patch.get("spec") or {}
    sidecars = {container["name"] for container in template["spec"].get("initContainers", ())}
    moved = [container for container in spec.get("containers", ()) if container.get("name") in sidecars]
    if not moved:
        return patch
    kept = [container for container in spec["containers"] if container.get("name") not in sidecars]
    inits = [*moved, *spec.get("initContainers", ())]
    return {**patch, "spec": {**spec, "containers": kept, "initContainers": inits}}


def _merge_maps(base: Manifest, patch: Manifest) -> Manifest:
    merged = {key: value for key, value in base.items() if patch.get(key, value) is not None}
    for key, value in patch.items():
        if value is not None:
            merged[key] = _merge(key, base.get(key), value)
    return merged


def _merge(key: str, base: Any, patch: Any) -> Any:
    if isinstance(base, dict) and isinstance(patch, dict):
        return _merge_maps(base, patch)
    if isinstance(base, list) and isinstance(patch, list) and key in _MERGE_KEYS:
        return _merge_named(_MERGE_KEYS[key], base, patch)
    if key == "tolerations" and isinstance(base, list):
        return [*base, *(item for item in patch if item not in base)]
    return patch


def _merge_named(merge_key: str, base: list[Any], patch: list[Any]) -> list[Any]:
    patches = {item.get(merge_key): item for item in patch}
    known = {item.get(merge_key) for item in base}
    merged = [_merge_maps(item, patches.get(item.get(merge_key), {})) for item in base]
    return merged + [item for item in patch if item.get(merge_key) not in known]
