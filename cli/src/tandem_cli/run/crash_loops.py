# SPDX-License-Identifier: Apache-2.0
"""Containers that it makes no sense to start again."""

from dataclasses import dataclass, field

from tandem_cli.local.node import ContainerExit

MOST_FAILURES = 5
WRONG_INPUT = 2
_SOON_SECONDS = 60.0


@dataclass(slots=True)
class CrashLoops:
    """Failures in a row, each within a minute of the start, by pod and container.

    Tandem's programs end with status 2 when what the user gave is wrong; one such end is enough.
    """

    _failures: dict[tuple[str, str], int] = field(default_factory=dict)
    _last: dict[tuple[str, str], ContainerExit] = field(default_factory=dict)

    def note(self, end: ContainerExit) -> None:
        """A container ended with an error."""
        key = (end.pod, end.container)
        before = self._failures.get(key, 0) if end.seconds < _SOON_SECONDS else 0
        self._failures[key] = before + 1
        self._last[key] = end

    @property
    def wrong_input(self) -> bool:
        """Whether a program said that the manifest or the data is wrong: starting it again cannot help."""
        return any(end.status == WRONG_INPUT for end in self._last.values())

    def of(self, job: str) -> str | None:
        """What is wrong with the pods of a Job, if one of them is in a crash loop."""
        for (pod, container), failures in self._failures.items():
            if pod != job and not pod.startswith(f"{job}-"):
                continue
            status = self._last[pod, container].status
            if status == WRONG_INPUT:
                return f"container {container} of pod {pod} says that the manifest or the data is wrong"
            if failures >= MOST_FAILURES:
                return (
                    f"CrashLoop: container {container} of pod {pod} failed {failures} times in a row within "
                    f"{_SOON_SECONDS:.0f} s of its start, last with status {status}"
                )
        return None
