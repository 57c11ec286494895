# SPDX-License-Identifier: Apache-2.0
"""CPU and memory of a hybrid pod, whose two programs take turns.

Container requests add up, though the containers never need all of it at once. Where the API server knows pod-level
resources the pod asks for the larger of the two instead, and the containers share it.
"""

from decimal import Decimal

from tandem_operator.plan.identity import Manifest

_SHARED = ("cpu", "memory")
_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}


def amount(quantity: str | int | float) -> Decimal:
    """A Kubernetes quantity as a number.

    >>> amount("1500m") == amount("1.5")
    True
    """
    text = str(quantity)
    number = text.rstrip("numkKMGTPEi")
    return Decimal(number) * _SUFFIXES[text[len(number) :]]


def pod_level(trainer: Manifest, engine: Manifest) -> Manifest:
    """The larger of both containers' requests and limits of CPU and memory."""
    merged: Manifest = {}
    for kind in ("requests", "limits"):
        both = [resources.get(kind, {}) for resources in (trainer, engine)]
        largest = {
            name: max((part[name] for part in both if name in part), key=amount)
            for name in _SHARED
            if any(name in part for part in both)
        }
        if kind == "limits":
            # A container without a limit may use the node's; a limit of the pod would take that from it.
            largest = {name: value for name, value in largest.items() if all(name in part for part in both)}
        if largest:
            merged[kind] = largest
    return merged


def without_shared(resources: Manifest) -> Manifest:
    """A container's resources less what its pod asks for on its behalf."""
    kept = {
        kind: {name: value for name, value in resources[kind].items() if name not in _SHARED}
        for kind in ("requests", "limits")
        if kind in resources
    }
    rest = {key: value for key, value in resources.items() if key not in ("requests", "limits")}
    return rest | {kind: values for kind, values in kept.items() if values}


def combined(*parts: Manifest) -> Manifest:
    """Resources of one container from several sources; later ones win."""
    merged: Manifest = {}
    for part in parts:
        for kind, value in part.items():
            merged[kind] = {**merged[kind], **value} if isinstance(value, dict) and kind in merged else value
    return merged
