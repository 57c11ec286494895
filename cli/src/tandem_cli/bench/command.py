# SPDX-License-Identifier: Apache-2.0
"""The commands of ``tandem bench``."""

from typing import Annotated

import typer
from rich.console import Console

from tandem_cli.bench.handoff import Options, bench_handoff

app = typer.Typer(help="What this machine or pod can do, each step beside the limit that it could reach.")

MiB = Annotated[int, typer.Option(metavar="MIB", min=50, help="Size of the model, in MiB of bfloat16.")]
Bucket = Annotated[int, typer.Option(metavar="MIB", min=1, help="Size of a bucket: spec.handoff.bucket.")]
Rounds = Annotated[int, typer.Option(min=1, help="Measurements of each step; the median counts.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda:N.", show_default="the first GPU, else the CPU")]


@app.callback()
def _bench() -> None:
    """Makes typer ask for the name of the command, though there is but one."""


@app.command()
def handoff(mib: MiB = 512, bucket: Bucket = 64, rounds: Rounds = 5, device: Device = None) -> None:
    """Weights from one process to another. Needs three times their size in free memory."""
    bench_handoff(Options(mib, bucket, rounds, device), Console())
