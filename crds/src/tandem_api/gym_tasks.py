# SPDX-License-Identifier: Apache-2.0
"""Names of reasoning-gym's tasks, found without importing it: that takes seconds."""

import importlib.util
import re
from functools import cache
from pathlib import Path

_REGISTERED = re.compile(r"register_dataset\(\s*(\"\w+\"|\w+)")
_CONSTANT = re.compile(r"^(\w+)\s*=\s*\"(\w+)\"", re.MULTILINE)


@cache
def task_names() -> frozenset[str] | None:
    """The tasks of the installed reasoning-gym, or None where it is not installed."""
    package = importlib.util.find_spec("reasoning_gym")
    if package is None or not package.submodule_search_locations:
        return None
    files = (file for root in package.submodule_search_locations for file in Path(root).rglob("*.py"))
    return frozenset(name for file in files for name in _tasks_of(file.read_text(encoding="utf-8")))


def _tasks_of(source: str) -> set[str]:
    """The first arguments of the module's calls of register_dataset: literals, or its own constants."""
    if "register_dataset(" not in source:
        return set()
    constants = dict(_CONSTANT.findall(source))
    arguments = _REGISTERED.findall(source)
    # What is neither a literal nor a constant is the parameter of a function that registers for others.
    return {
        constants.get(argument, argument.strip('"'))
        for argument in arguments
        if argument in constants or '"' in argument
    }
