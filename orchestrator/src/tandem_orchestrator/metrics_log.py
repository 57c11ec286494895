# SPDX-License-Identifier: Apache-2.0
"""``metrics.jsonl`` and ``timeline.jsonl``: the run so far, one line an iteration and one line an ack."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonLines:
    """A file of JSON objects, one a line, that is never seen with half a line.

    With ``key``, a line whose value of it is there already replaces that line: an iteration that is repeated after a
    rollback is counted once, and ``lines`` holds all of them. A line that was cut off when the process died is taken
    away on opening.
    """

    def __init__(self, path: Path, key: str | None = None) -> None:
        self._path = path
        self._key = key
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            self._recover()

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line, or replace the one with the same key."""
        content = dict(line)
        if self._key is None:
            self._append(content)
            return
        value = content[self._key]
        place = next((place for place, found in enumerate(self.lines) if found.get(self._key) == value), None)
        if place is None:
            self.lines.append(content)
            self._append(content)
        else:
            self.lines[place] = content
            self._rewrite(b"".join(map(_encoded, self.lines)))

    def _append(self, content: dict[str, Any]) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, _encoded(content))
        finally:
            os.close(descriptor)

    def _recover(self) -> None:
        whole, end, rest = self._path.read_bytes().rpartition(b"\n")
        if rest:
            self._rewrite(whole + end)
        if self._key is not None:
            self.lines = [json.loads(line) for line in whole.splitlines()]

    def _rewrite(self, content: bytes) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(self._path)


def _encoded(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"
