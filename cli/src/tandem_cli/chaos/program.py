# SPDX-License-Identifier: Apache-2.0
"""Modules of this package as one text, for ``python -c`` in a container that need not have it."""

from importlib import resources

_IMPORTABLE = """\
import sys, types
_module = sys.modules[{name!r}] = types.ModuleType({name!r})
exec({source!r}, vars(_module))
"""


def program(main: str, *needed: str) -> str:
    """The module ``main``, to be run, and before it those that it imports, each after those that it imports itself."""
    importable = (_IMPORTABLE.format(name=f"{__package__}.{name}", source=_source(name)) for name in needed)
    return "".join((*importable, _source(main)))


def _source(name: str) -> str:
    return (resources.files(__package__) / f"{name}.py").read_text(encoding="utf-8")
