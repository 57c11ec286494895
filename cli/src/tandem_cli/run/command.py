# SPDX-License-Identifier: Apache-2.0
"""``tandem run`` from the command line to the exit status."""

import asyncio
import contextlib
import shlex
import sys
from pathlib import Path
from typing import TextIO, cast

import structlog
from rich.console import Console

from tandem_api import manifest
from tandem_api.errors import RunFailed, UserError
from tandem_api.rljob import RLJobObject
from tandem_api.status import RLJobStatus
from tandem_cli.report.data import RunData, load
from tandem_cli.report.page import write_report
from tandem_cli.run.directory import RunDirectory
from tandem_cli.run.display import display_for
from tandem_cli.run.driver import End, Ending
from tandem_cli.run.local import run_locally
from tandem_cli.run.log_end import last_lines, log_that_matters
from tandem_cli.run.view import clock, percent, rate
from tandem_cli.validate import validate

SUCCEEDED, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


def run_command(file: Path, out: Path | None, resume: bool, console: Console) -> int:
    """Validate, run, and tell how it ended; the exit status.

    Raises:
        UserError: the manifest, the data or the directory is wrong. Nothing was started.
    """
    if problems := validate(file):
        raise UserError(*problems)
    written = manifest.read(file)
    job = manifest.load_manifest(written)
    directory = RunDirectory(out or Path("runs") / job.metadata.name)
    directory.check(resume)
    with directory:
        job = directory.resume(written, job) if resume else directory.begin(written, job)
        _log_to(directory)
        try:
            ending = _run(job, written, directory, console)
        except RunFailed as error:
            ending = Ending(End.FAILED, directory.read_status(), str(error))
        return tell(ending, file, directory, console)


def _run(job: RLJobObject, written: manifest.Manifest, directory: RunDirectory, console: Console) -> Ending:
    with display_for(console, f"{job.metadata.name} in {directory.path}") as display:
        return asyncio.run(run_locally(job, written.others, directory, display))


def _log_to(directory: RunDirectory) -> None:
    """The command line's own log lies beside those of the containers; the terminal is the display's."""
    directory.logs.mkdir(exist_ok=True)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _LogFile(directory.logs / "tandem.log"))),
    )


class _LogFile:
    """A log on a volume that may have no room: a line that cannot be written is lost, and nothing else."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._file.write(text.encode())

    def flush(self) -> None:
        return


def tell(ending: Ending, file: Path, directory: RunDirectory, console: Console) -> int:
    """Say how the run ended, and write its report; the exit status."""
    data = load(directory.path)
    if data.metrics:
        _report(data, directory, console)
    match ending.end:
        case End.SUCCEEDED:
            _tell_success(data, directory, console)
            return SUCCEEDED
        case End.FAILED:
            _tell_failure(ending, directory, console)
            return WRONG if ending.wrong_input else FAILED
        case _:
            again = shlex.join(["tandem", "run", str(file), "--out", str(directory.path), "--resume"])
            _print(console, f"Stopped. {_saved(ending.status)} Go on with: {again}")
            return INTERRUPTED


def _report(data: RunData, directory: RunDirectory, console: Console) -> None:
    """Write the page, which can be made again at any time: how the run ended counts more."""
    try:
        write_report(directory.report, data)
    except UserError as error:
        again = shlex.join(["tandem", "report", str(directory.path)])
        _print(console, f"{error}; once it can be: {again}")


def _saved(status: RLJobStatus) -> str:
    if status.checkpoint is None:
        return "Nothing had to be saved yet."
    done = status.checkpoint.iteration
    return f"Saved after iteration {done}." if done else "Saved after the warm-up."


def _tell_success(data: RunData, directory: RunDirectory, console: Console) -> None:
    summary = data.summary
    lines = {
        "held-out accuracy": f"{percent(summary.accuracy_before)} → {percent(summary.accuracy_after)}",
        "iterations": f"{summary.iterations} in {clock(summary.seconds)}",
        "switching": percent(summary.switch_share),
        "throughput": rate(summary.tokens_per_second),
        "report": str(directory.report),
        "checkpoints": str(directory.checkpoints),
    }
    width = max(map(len, lines))
    _print(console, f"{data.name} succeeded.")
    for name, value in lines.items():
        _print(console, f"  {name:<{width}}  {value}")


def _tell_failure(ending: Ending, directory: RunDirectory, console: Console) -> None:
    _print(console, f"The run failed. {ending.reason}".rstrip())
    path = log_that_matters(directory.logs, ending.failed_logs)
    if path is not None:
        _print(console, f"The end of {path}:")
        for line in last_lines(path):
            _print(console, f"  {line}")


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def fail(error: UserError) -> int:
    """Print each problem on a line of its own on standard error; the exit status."""
    for problem in error.problems:
        sys.stderr.write(f"{problem}\n")
    return WRONG
