# SPDX-License-Identifier: Apache-2.0
"""The command line. Exit status: 0 done, 1 the run failed, 2 the manifest or data is wrong, 130 interrupted."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tandem_api.errors import UserError
from tandem_cli.bench.command import app as bench_app
from tandem_cli.buffer.command import app as buffer_app
from tandem_cli.chaos.command import app as chaos_app
from tandem_cli.curate.command import app as curate_app
from tandem_cli.report.command import report_command
from tandem_cli.run.command import INTERRUPTED, fail, run_command
from tandem_cli.validate import validate as problems_of

app = typer.Typer(
    help="Reinforcement learning of language models, with training and rollout taking turns on the same accelerators.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(buffer_app, name="buffer")
app.add_typer(curate_app, name="curate")
app.add_typer(bench_app, name="bench")
app.add_typer(chaos_app, name="chaos")

File = Annotated[Path, typer.Argument(metavar="FILE", help="YAML file with one RLJob, and what it refers to.")]


@app.command("run")
def run_job(
    file: File,
    out: Annotated[Path | None, typer.Option(help="Directory of the run.", show_default="runs/NAME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the directory.")] = False,
) -> None:
    """Run an RLJob on this machine.

    Ctrl-C saves a checkpoint and stops; a second one stops at once.
    """
    raise typer.Exit(run_command(file, out, resume, Console()))


@app.command()
def validate(file: File) -> None:
    """Print every problem of a manifest and of the data it names."""
    problems = problems_of(file)
    if problems:
        raise UserError(*problems)
    typer.echo(f"{file} is valid.")


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a run.")],
    compare: Annotated[Path | None, typer.Option(metavar="DIR", help="Directory of a run to compare with.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page.", show_default="DIR/report.html")] = None,
) -> None:
    """Write the report of a run, or of two runs side by side."""
    typer.echo(report_command(directory, compare, out))


def run() -> None:
    """The program ``tandem``."""
    # Until a run takes signals itself there is nothing to save.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(INTERRUPTED))
    try:
        app()
    except UserError as error:
        sys.exit(fail(error))


if __name__ == "__main__":
    run()
