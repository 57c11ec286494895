#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Starts and stops the Kubernetes of the tests. README.md says what it is; `cluster.py --help` what it can do."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from tandem_cluster.components import kubectl
from tandem_cluster.errors import ClusterError
from tandem_cluster.images import import_archive, stored_blobs
from tandem_cluster.lifecycle import Cluster

DEFAULT_STATE = Path(__file__).resolve().parents[2] / "build" / "cluster"
console = Console(stderr=True, highlight=False)
app = typer.Typer(add_completion=False, no_args_is_help=True, help="A Kubernetes for the tests.")
StateOption = Annotated[Path, typer.Option(help="Folder of everything that belongs to the cluster.")]


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    begin = time.monotonic()
    with console.status(title):
        yield
    console.print(f"[green]✓[/green] {title} [dim]{time.monotonic() - begin:.1f} s[/dim]")


@app.command()
def up(
    state: StateOption = DEFAULT_STATE,
    devices: Annotated[int, typer.Option(help="Devices of the fake DRA driver.")] = 8,
    nodes: Annotated[bool, typer.Option(help="Whether there is a node to run pods.")] = True,
) -> None:
    """Start the cluster and wait until its node is ready. Harmless when it is up."""
    cluster = Cluster(state.resolve())
    cluster.up(step, devices, nodes=nodes)
    console.print(f"ready: export KUBECONFIG={cluster.layout.kubeconfig} PATH={cluster.layout.bin}:$PATH")


@app.command()
def down(
    state: StateOption = DEFAULT_STATE,
    purge: Annotated[bool, typer.Option(help="Delete the images and logs too.")] = False,
) -> None:
    """Stop the cluster and everything that runs in it; images stay for the next start."""
    Cluster(state.resolve()).down(step, purge=purge)


@app.command()
def status(state: StateOption = DEFAULT_STATE) -> None:
    """Show the components and the node. Exits with 1 when the cluster is not up."""
    cluster = Cluster(state.resolve())
    table = Table("component", "process", "state", "memory")
    for process in cluster.processes():
        memory = f"{process.resident_bytes() / 2**20:.0f} MiB" if process.running else ""
        table.add_row(process.name, str(process.pid), "running" if process.running else "[red]ended[/red]", memory)
    console.print(table)
    if not cluster.running():
        raise ClusterError("the cluster is not up: start it with `cluster.py up`")
    console.print(kubectl(cluster.layout, "get", "nodes", "-o", "wide").stdout)


@app.command()
def load(
    archive: Annotated[typer.FileBinaryRead, typer.Argument(help="An OCI or `docker save` archive; - is the input.")],
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Put the images of an archive into the cluster."""
    for line in import_archive(Cluster(state.resolve()).layout.node, archive):
        console.print(line)


@app.command()
def join(state: StateOption = DEFAULT_STATE) -> None:
    """Add a second node, with the images of the first. Harmless when it is there."""
    Cluster(state.resolve()).join(step)


@app.command()
def lose(state: StateOption = DEFAULT_STATE) -> None:
    """Cut the second node's power: everything on it ends at once and unheard, and nothing of its disk is left."""
    Cluster(state.resolve()).lose(step)


@app.command()
def blobs(state: StateOption = DEFAULT_STATE) -> None:
    """List the digests of what the cluster's image store holds: layers that need not be loaded again."""
    print("\n".join(sorted(stored_blobs(Cluster(state.resolve()).layout.node))))


if __name__ == "__main__":
    try:
        app()
    except ClusterError as error:
        console.print(f"error: {error}", style="red", markup=False)
        sys.exit(1)
