# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects as read from manifests: looked up by kind and name, read by path."""

from collections.abc import Iterable, Iterator
from typing import Any

from tandem_api.errors import Problem, UserError

Manifest = dict[str, Any]


class Manifests:
    """The objects of one namespace; an object given again replaces the earlier one.

    >>> objects = Manifests([{"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}}])
    >>> objects.one("ConfigMap", "a")["data"]
    {'k': 'v'}
    """

    def __init__(self, objects: Iterable[Manifest]) -> None:
        self._objects = {(item["kind"], item["metadata"]["name"]): item for item in objects}

    def kind(self, kind: str) -> Iterator[Manifest]:
        """All objects of a kind, in the order they were given."""
        return (item for (its_kind, _), item in self._objects.items() if its_kind == kind)

    def find(self, kind: str, name: str) -> Manifest | None:
        return self._objects.get((kind, name))

    def one(self, kind: str, name: str, where: str = "") -> Manifest:
        """The object.

        Raises:
            UserError: there is none; ``where`` says what refers to it.
        """
        found = self.find(kind, name)
        if found is None:
            raise UserError(
                Problem(where or kind, f"refers to {kind} {name}, which is not there; add it to the manifest file")
            )
        return found


def dig(item: Any, *path: str | int, default: Any = None) -> Any:
    """The value at a path of keys and indices, or ``default`` where any of them is missing or null.

    >>> dig({"spec": {"a": [1, 2]}}, "spec", "a", 1)
    2
    """
    for step in path:
        if isinstance(item, dict):
            item = item.get(step)
        elif isinstance(item, list) and isinstance(step, int) and step < len(item):
            item = item[step]
        else:
            return default
    return default if item is None else item
