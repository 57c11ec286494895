# SPDX-License-Identifier: Apache-2.0
"""The commands of ``tandem curate``. The orchestrator's package does the work, in a process of its own."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tandem_cli import orchestrator_process

app = typer.Typer(help="Make prompt sets.", no_args_is_help=True)


@app.callback()
def _commands() -> None:
    """Make prompt sets."""


@app.command()
def code(
    problems: Annotated[Path, typer.Argument(metavar="FILE", help="Problems, one a line of JSON: docs/curate.md.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where kept.jsonl, dropped.jsonl and report.json go.")],
    cases: Annotated[int, typer.Option(help="Inputs that the generator of a problem makes.")] = 50,
    submissions: Annotated[int, typer.Option(help="Programs that are asked, drawn from those of the problem.")] = 10,
    agree: Annotated[int, typer.Option(help="Programs that must print the same for an input to be kept.")] = 7,
    passing: Annotated[int, typer.Option(help="Programs that must pass all kept tests of a problem.")] = 9,
    least_cases: Annotated[int, typer.Option(help="Inputs of a problem that must be kept.")] = 40,
    timeout: Annotated[str, typer.Option(help="Longest run of a program.")] = "5s",
    memory: Annotated[str, typer.Option(help="Most memory of a program.")] = "512Mi",
    seed: Annotated[int, typer.Option(help="Inputs and drawn programs are the same for the same seed.")] = 0,
) -> None:
    """Make tests for programming problems, and keep the problems that can be trusted.

    Inputs come from a generator written with CYaRon, outputs from submissions that agree (k1.5, section 2.3.5). All
    programs run in the sandbox.
    """
    options = {
        "--out": out, "--cases": cases, "--submissions": submissions, "--agree": agree, "--passing": passing,
        "--least-cases": least_cases, "--timeout": timeout, "--memory": memory, "--seed": seed,
    }  # fmt: skip
    arguments = [str(problems), *(str(word) for option in options.items() for word in option)]
    console = Console()
    _follow(orchestrator_process.lines_of("curation.code", arguments), console)
    console.print(_summary(json.loads((out / "report.json").read_text())))
    console.print(f"The prompts are in {out / 'kept.jsonl'}, the others with their reasons in {out / 'dropped.jsonl'}.")


def _follow(lines: Iterator[dict[str, Any]], console: Console) -> None:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("judging problems", total=None)
        for line in lines:
            if "problems" in line:
                progress.update(task, total=line["problems"])
                continue
            progress.advance(task)
            if not line["kept"]:
                progress.console.print(f"{escape(line['id'])}: dropped, {line['reason']}")


def _summary(report: dict[str, Any]) -> Table:
    table = Table("problems", "", box=None, show_header=False)
    table.add_row(f"{report['kept']:,}", "kept")
    for reason, count in report["dropped"].items():
        table.add_row(f"{count:,}", f"dropped: {reason}")
    return table
