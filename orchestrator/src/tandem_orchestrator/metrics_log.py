# SPDX-License-Identifier: Apache-2.0
"""``metrics.jsonl`` and ``timeline.jsonl``: the run so far, one line an iteration and one line an ack."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from tandem_api.files import write_whole

log = structlog.get_logger()

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class JsonLines:
    """A file of JSON objects, one a line, that is never seen with half a line.

    With ``key``, a line whose value of it is there already replaces that line: an iteration that is repeated after a
    rollback is counted once, and ``lines`` holds all of them. A line that was cut off when the process died is taken
    away on opening. Lines for which the volume has no room are written with the next one for which it has.
    """

    def __init__(self, path: Path, key: str | None = None) -> None:
        self._path = path
        self._key = key
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lines: list[dict[str, Any]] = []
        self._waiting = b""
        self._outdated = False
        if path.exists():
            self._recover()

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line, or replace the one with the same key."""
        content = dict(line)
        try:
            if not self._replaces(content):
                self._append(_encoded(content))
            if self._outdated:
                self._rewrite(b"".join(map(_encoded, self.lines)))
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            log.warning("a line waits for room on the volume", path=str(self._path), error=str(error))

    def _replaces(self, content: dict[str, Any]) -> bool:
        """Whether the line takes the place of an earlier one. Notes keyed lines in ``lines``."""
        if self._key is None:
            return False
        value = content[self._key]
        place = next((place for place, found in enumerate(self.lines) if found.get(self._key) == value), None)
        if place is None:
            self.lines.append(content)
            return False
        self.lines[place] = content
        self._outdated = True
        return True

    def _append(self, line: bytes) -> None:
        self._waiting += line
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            end = os.fstat(descriptor).st_size
            if os.write(descriptor, self._waiting) < len(self._waiting):
                os.ftruncate(descriptor, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
        self._waiting = b""

    def _recover(self) -> None:
        whole, end, rest = self._path.read_bytes().rpartition(b"\n")
        if rest:
            self._rewrite(whole + end)
        if self._key is not None:
            self.lines = [json.loads(line) for line in whole.splitlines()]

    def _rewrite(self, content: bytes) -> None:
        write_whole(self._path, content, durable=True)
        self._waiting, self._outdated = b"", False


def _encoded(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"
