# SPDX-License-Identifier: Apache-2.0
"""Parts of the orchestrator's package that a user calls, each as a process of its own: nothing of it is imported."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

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
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        where, _, why = (lines[-1] if lines else f"ended with {done.returncode}").partition(": ")
        raise UserError(Problem(where, why))
    return done.stdout
