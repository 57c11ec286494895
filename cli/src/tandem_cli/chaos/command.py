# SPDX-License-Identifier: Apache-2.0
"""The commands of ``tandem chaos``. Exit status of ``run``: 0 the job recovered from every fault, 1 it did not, 2 the
plan is wrong or asks for what cannot be done there, 130 interrupted."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.console import Console

from tandem_api.errors import Problem, UserError
from tandem_cli.chaos.display import Display, JsonLines, Lines, Outcome
from tandem_cli.chaos.injector import Injector
from tandem_cli.chaos.local import attached
from tandem_cli.chaos.place import Job, JobEnded, NotDone
from tandem_cli.chaos.plan import Fault, dumped, load
from tandem_cli.run.interrupts import Interrupts

RECOVERED, LOST, INTERRUPTED = 0, 1, 130

app = typer.Typer(help="Faults on purpose: break a running job and see whether it recovers.", no_args_is_help=True)

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="YAML file with seed, faults, random: docs/chaos.md.")]


@app.command("plan")
def show_plan(file: PlanFile) -> None:
    """Print the faults that a plan comes to, as a plan in which nothing is left to be drawn."""
    typer.echo(dumped(load(file).resolved()), nl=False)


@app.command()
def run(
    file: PlanFile,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="RLJob on a cluster.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Or: directory of a run on this machine.")] = None,
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace of the RLJob.")] = None,
    kubeconfig: Annotated[Path | None, typer.Option(help="Kubeconfig file.", show_default="KUBECONFIG")] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
    patience: Annotated[float, typer.Option(metavar="SECONDS", min=1.0, help="Longest wait for anything.")] = 600.0,
    raw: Annotated[bool, typer.Option("--json", help="Print lines of JSON instead.")] = False,
) -> None:
    """Do a plan's faults to a running job, one after the other, and wait each time until it works again.

    What is stopped, cut off or filled is put right in any case, also on Ctrl-C.
    """
    if (name is None) is (out is None):
        raise UserError(Problem("tandem chaos run", "takes either --out DIR or the NAME of an RLJob"))
    faults = load(file).resolved()
    console = Console()
    display = JsonLines(console) if raw else Lines(console)
    # That etcd is away is what is wanted here, and standard output is the display's.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("error"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    attaching = attached(out) if out is not None else _on_cluster(str(name), namespace, kubeconfig, context)
    raise typer.Exit(asyncio.run(_run(attaching, str(out or name), faults, patience, display)))


@asynccontextmanager
async def _on_cluster(
    name: str, namespace: str | None, kubeconfig: Path | None, context: str | None
) -> AsyncIterator[Job]:
    # The client library takes longer to import than anything else here.
    from tandem_cli.chaos.cluster import attached_to
    from tandem_cli.cluster.connection import Connection, Options
    from tandem_cli.cluster.errors import ClusterError
    from tandem_cli.cluster.objects import Cluster

    try:
        cluster = Cluster(Connection(Options(kubeconfig, context, namespace)))
        async with attached_to(cluster, name) as job:
            yield job
    except ClusterError as error:
        raise UserError(Problem(name, str(error))) from error


async def _run(
    attaching: AbstractAsyncContextManager[Job], where: str, faults: Sequence[Fault], patience: float, display: Display
) -> int:
    task = asyncio.current_task()
    assert task is not None

    def interrupt() -> None:
        task.cancel()

    with Interrupts().heard(interrupt):
        try:
            async with attaching as job:
                if problems := await job.refusals(faults):
                    raise UserError(*problems)
                display.begin(where, faults)
                outcomes = await inflict_all(job, faults, patience, display)
        except asyncio.CancelledError:
            return INTERRUPTED
    display.end(outcomes)
    return RECOVERED if all(outcome.recovered for outcome in outcomes) else LOST


async def inflict_all(job: Job, faults: Sequence[Fault], patience: float, display: Display) -> list[Outcome]:
    """Do the faults one after the other; what came of each. Those after the job's end were not done."""
    injector = Injector(job, patience, tell=display.struck)
    outcomes: list[Outcome] = []
    for fault in faults:
        try:
            recovery = await injector.inflict(fault)
            outcome = Outcome(fault, recovery)
        except (NotDone, JobEnded) as error:
            outcome = Outcome(fault, None, str(error))
        outcomes.append(outcome)
        display.outcome(outcome)
    return outcomes
