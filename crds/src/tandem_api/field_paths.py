# SPDX-License-Identifier: Apache-2.0
"""Where in a manifest something stands."""

import re

type FieldPath = tuple[str | int, ...]
"""For example ``("spec", "data", "prompts", 0, "path")``."""

type Place = tuple[FieldPath, str]
"""A field and what is wrong with it."""


def dotted(path: FieldPath) -> str:
    """``spec.data.prompts[0].path``; a key that is no identifier stands in brackets: ``labels[example.com/a]``."""
    text = ""
    for part in path:
        if isinstance(part, int) or not re.fullmatch(r"\w+", part):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text
