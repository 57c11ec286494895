# SPDX-License-Identifier: Apache-2.0
"""The commands of ``tandem buffer``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tandem_cli import orchestrator_process
from tandem_cli.buffer.pages import overview_page, trajectory_page

app = typer.Typer(help="What the replay buffer of a run holds. Nothing is changed; the run may go on meanwhile.")

Place = Annotated[
    Path, typer.Argument(metavar="DIR", help="Directory of a run, or of its orchestrator's volume, or the buffer file.")
]
Raw = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Model = Annotated[
    Path | None, typer.Option("--tokenizer", metavar="DIR", help="Directory of the model.", show_default="the run's")
]


@app.command("ls")
def list_buffer(place: Place, raw: Raw = False) -> None:
    """Iterations, trajectories by state, batches, sizes."""
    said = _ask("ls", place)
    _print(said if raw else overview_page(said))


@app.command()
def show(
    place: Place,
    trajectory: Annotated[str, typer.Argument(metavar="ID", help="Name of a trajectory, GROUP-SAMPLE.")],
    tokenizer: Model = None,
    raw: Raw = False,
) -> None:
    """One trajectory: its segments with the weights that wrote them, its text, its score."""
    said = _ask("show", place, trajectory, *_tokenizer(tokenizer))
    _print(said if raw else trajectory_page(said))


@app.command()
def export(
    place: Place,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Parquet file to write.")],
    batch: Annotated[int | None, typer.Option(metavar="N", help="Only what the batch of this iteration took.")] = None,
    tokenizer: Model = None,
) -> None:
    """Write trajectories to a Parquet file, one a row; the columns are described in docs/buffer.md."""
    only = () if batch is None else ("--batch", str(batch))
    said = _ask("export", place, "--out", str(out), *only, *_tokenizer(tokenizer))
    typer.echo(f"{said['trajectories']:,} trajectories are in {said['path']}.")


def _ask(command: str, place: Path, *more: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(orchestrator_process.output_of("buffer", [command, str(place), *more]))
    return said


def _tokenizer(directory: Path | None) -> tuple[str, ...]:
    return () if directory is None else ("--tokenizer", str(directory))


def _print(page: Any) -> None:
    if isinstance(page, dict):
        typer.echo(json.dumps(page, indent=2))
    else:
        Console().print(page)
