# SPDX-License-Identifier: Apache-2.0
"""Parts of the orchestrator's package that a user calls, each as a process of its own: nothing of it is imported."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from tandem_api.errors import Problem, UserError

_PACKAGE = "tandem_orchestrator"


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command line of ``module`` of the orchestrator's package.

    Raises:
        UserError: the package is not installed here.
    """
    if find_spec(_PACKAGE) is None:
        raise UserError(Problem(_PACKAGE, "is not installed here; install tandem-orchestrator beside tandem-cli"))
    return [sys.executable, "-m", f"{_PACKAGE}.{module}", *arguments]


def output_of(module: str, arguments: Sequence[str]) -> bytes:
    """What ``module`` prints.

    Raises:
        UserError: it refuses, with its own words.
    """
    done = subprocess.run(command(module, arguments), capture_output=True, check=False)
    if done.returncode != 0:
        raise _refusal(done.stderr, done.returncode)
    return done.stdout


def lines_of(module: str, arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What ``module`` says, line by line of JSON, while it works. Leaving early ends it.

    Raises:
        UserError: it refuses, with its own words.
    """
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(command(module, arguments), stdout=subprocess.PIPE, stderr=complaints)
        try:
            for line in process.stdout or ():
                yield json.loads(line)
            status = process.wait()
        finally:
            process.terminate()
            process.wait()
        complaints.seek(0)
        if status != 0:
            raise _refusal(complaints.read(), status)


def _refusal(complaint: bytes, status: int) -> UserError:
    lines = complaint.decode(errors="replace").strip().splitlines()
    where, _, why = (lines[-1] if lines else f"the orchestrator's process: ended with {status}").partition(": ")
    return UserError(Problem(where, why))
