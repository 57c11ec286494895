# SPDX-License-Identifier: Apache-2.0
"""Errors named by what the caller does next: tell the user, try again, recover, or stop."""

from dataclasses import dataclass


class TandemError(Exception):
    """Base of every error that Tandem raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with what a user wrote.

    ``where`` is a field path (``spec.rollout.maxTokens``) or a place in a file (``prompts.jsonl:17``); ``line`` is
    the 1-based line of the manifest, where one is known.
    """

    where: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        at = f" (line {self.line})" if self.line else ""
        return f"{self.where}{at}: {self.message}"


class UserError(TandemError):
    """The manifest or the data is wrong. Nothing was started; trying again does not help. Exit code 2."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


class TryAgain(TandemError):
    """Something out of our hands failed for now (etcd away, a connection refused); the same call may succeed later."""


class Fenced(TandemError):
    """This process is no longer who it says it is: its lease or its view of the phase is gone.

    The caller stops writing at once and joins again, or exits. Retrying the same write is always wrong.
    """


class MemberFailed(TandemError):
    """A member could not do its part of a phase. The orchestrator moves the job to Recover."""


class RunFailed(TandemError):
    """The run cannot go on, and no restart would help. Exit code 1."""
