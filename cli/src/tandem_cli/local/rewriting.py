# SPDX-License-Identifier: Apache-2.0
"""Mount paths and host names of a cluster, rewritten to what they are on this machine."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True, slots=True)
class Rewriting:
    """What one container sees under other names than this machine.

    ``mounts``: mount path -> directory or file here. ``hosts``: DNS name -> loopback address. Replaced in one pass,
    longest first, so nothing is replaced twice; only whole path elements and whole host names count.
    ``empty``: the mounts that hold nothing when the container starts. What already lies below such a path on this
    machine (prompts in /tmp) can only be meant as it is here, and stays.

    >>> Rewriting({"/etc/tandem": Path("/x")}, {"job-orchestrator": "127.1.2.10"}).text(
    ...     "--job=/etc/tandem/job.json http://job-orchestrator:8080/etc/tandem-old")
    '--job=/x/job.json http://127.1.2.10:8080/etc/tandem-old'
    """

    mounts: Mapping[str, Path]
    hosts: Mapping[str, str]
    empty: frozenset[str] = frozenset()

    def text(self, text: str) -> str:
        """An argument or the value of an environment variable."""
        with_hosts = _hosts_pattern(tuple(self.hosts)).sub(lambda match: self.hosts[match[0]], text)
        return _paths_pattern(tuple(self.mounts)).sub(self._replacement, with_hosts)

    def document(self, text: str) -> str:
        """A file of a ConfigMap: in JSON, strings that are a path at or below a mount are rewritten; else unchanged.

        Prose that merely mentions a path stays as it is.
        """
        try:
            content = json.loads(text)
        except ValueError:
            return text
        rewritten = self._value(content)
        return text if rewritten == content else json.dumps(rewritten, indent=2, ensure_ascii=False)

    def path(self, path: str) -> Path:
        """A whole path."""
        for mount in sorted(self.mounts, key=len, reverse=True):
            if path == mount or path.startswith(f"{mount}/"):
                return Path(self._below(mount, path[len(mount) :]))
        return Path(path)

    def _replacement(self, match: re.Match[str]) -> str:
        return self._below(match["mount"], match["rest"])

    def _below(self, mount: str, rest: str) -> str:
        here = mount in self.empty and rest.strip("/") and Path(mount + rest).exists()
        return mount + rest if here else f"{self.mounts[mount]}{rest}"

    def _value(self, value: Any) -> Any:
        match value:
            case dict():
                return {key: self._value(item) for key, item in value.items()}
            case list():
                return [self._value(item) for item in value]
            case str() if value.startswith("/") and "\n" not in value:
                return str(self.path(value)) if self.path(value) != Path(value) else value
            case _:
                return value


def _alternatives(names: tuple[str, ...]) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


def _hosts_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    # A host stands at the start, or after what precedes hosts in URLs, lists and options; a path's element does not.
    before = r"(?:(?<=//)|(?<=@)|(?<=[,=\s])|^)"
    return re.compile(f"{before}(?:{_alternatives(names)})(?![\\w.-])") if names else _NOTHING


def _paths_pattern(mounts: tuple[str, ...]) -> re.Pattern[str]:
    pattern = rf"(?<![\w.-])(?P<mount>{_alternatives(mounts)})(?![\w.-])(?P<rest>(?:/[^\s/:;,'\"]*)*)"
    return re.compile(pattern) if mounts else _NOTHING
