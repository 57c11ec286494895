# SPDX-License-Identifier: Apache-2.0
"""``kubectl tandem``. Exit status: 0 done (``explain``: the job progresses), 1 ``explain``: it does not, 2 the cluster
was not reached or said no, 130 interrupted."""

import functools
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tandem_api.errors import UserError
from tandem_cli.cluster.errors import ClusterError

if TYPE_CHECKING:
    from tandem_cli.cluster.objects import Cluster

NOT_PROGRESSING, REFUSED, INTERRUPTED = 1, 2, 130

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+)([smhd])")


class Duration(click.ParamType[int]):
    """``90s``, ``5m``, ``1h30m`` as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if not re.fullmatch(rf"({_DURATION.pattern})+", value):
            self.fail(f"{value!r} is no duration; write 90s, 5m or 1h30m", param, context)
        return sum(int(count) * _UNITS[unit] for count, unit in _DURATION.findall(value))


def connected(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command on a cluster: with kubectl's options of which and as whom, and the cluster as its first argument."""

    @click.option("-n", "--namespace", help="Namespace.  [default: the context's]")
    @click.option("--kubeconfig", type=click.Path(path_type=Path), help="Kubeconfig file.  [default: KUBECONFIG]")
    @click.option("--context", help="Context of the kubeconfig.  [default: the current one]")
    @click.option("--as", "user", metavar="USER", help="Ask in this user's name.")
    @click.option("--request-timeout", type=Duration(), default="30s", show_default=True, help="Longest wait.")
    @functools.wraps(command)
    def wrapped(
        *,
        namespace: str | None,
        kubeconfig: Path | None,
        context: str | None,
        user: str | None,
        request_timeout: int,
        **rest: Any,
    ) -> Any:
        # The client library takes longer to import than a command line to parse.
        from tandem_cli.cluster.connection import Connection, Options
        from tandem_cli.cluster.objects import Cluster

        options = Options(kubeconfig, context, namespace, user, float(request_timeout))
        return command(Cluster(Connection(options)), **rest)

    return wrapped


everywhere = click.option("-A", "--all-namespaces", "everywhere", is_flag=True, help="Of all namespaces.")
name_argument = click.argument("name", metavar="NAME")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def app() -> None:
    """RLJobs on a cluster: how they are, why they do not go on, what they have learned."""


@app.command()
@click.argument("name", required=False)
@everywhere
@connected
def status(cluster: "Cluster", name: str | None, everywhere: bool) -> None:
    """Jobs in a table; with NAME, one job with its pods and conditions."""
    from tandem_cli.cluster.status import job_page, jobs_table

    if name is not None:
        job = cluster.job(name)
        click.echo(job_page(job, cluster.pods(job), time.time()))
    elif jobs := cluster.jobs(None if everywhere else cluster.namespace):
        click.echo(jobs_table(jobs, time.time(), everywhere))
    else:
        click.echo("There are no RLJobs." if everywhere else f"There are no RLJobs in namespace {cluster.namespace}.")


@app.command()
@click.argument("name", required=False)
@everywhere
@connected
def top(cluster: "Cluster", name: str | None, everywhere: bool) -> None:
    """What the accelerators of running jobs, and of their pods, are held for.

    Shares of the time held, as docs/utilisation.md defines it: what the orchestrator has booked of each pod up to the
    last phase but one. NOW and REQUESTS are what each pod's sidecar says.
    """
    from tandem_cli.cluster.top import page, usages

    found = [cluster.job(name)] if name else cluster.jobs(None if everywhere else cluster.namespace)
    jobs = [job for job in found if name or job.ended is None]
    if not jobs:
        click.echo("No job is running." if everywhere else f"No job is running in namespace {cluster.namespace}.")
        return
    click.echo(page(usages(cluster, jobs), everywhere))


@app.command()
@name_argument
@click.option("-f", "--follow", is_flag=True, help="Go on as lines are written, until the job has ended.")
@click.option("--since", type=Duration(), help="Only lines younger than this (90s, 5m, 1h).")
@click.option("--tail", type=click.IntRange(min=0), help="At most so many lines of each container.")
@click.option("-c", "--container", help="Only orchestrator, engine or trainer.")
@connected
def logs(
    cluster: "Cluster", name: str, follow: bool, since: int | None, tail: int | None, container: str | None
) -> None:
    """All logs of a job in one stream, in the order of time."""
    from tandem_cli.cluster.lines import rendered
    from tandem_cli.cluster.logs import Follower, Selection, past, sources

    job = cluster.job(name)
    selection = Selection(container, since, tail)
    chosen = sources(job, cluster.pods(job), container)
    if not chosen and not follow:
        raise ClusterError(f"{name} has no pods, so there are no logs; kubectl tandem explain {name} says why")
    width = max((len(source.label) for source in chosen), default=0)
    lines = Follower(cluster, job, selection).lines() if follow else past(cluster, job, chosen, selection)
    for line in lines:
        width = max(width, len(line.source.label))
        click.echo(rendered(line, width))


@app.command()
@name_argument
@click.option("--compare", metavar="NAME", help="Another job, NAME or NAMESPACE/NAME, to put beside it.")
@click.option("--out", type=click.Path(path_type=Path), help="The page.  [default: NAME.html]")
@connected
def report(cluster: "Cluster", name: str, compare: str | None, out: Path | None) -> None:
    """Write the report of a job, or of two side by side, as one HTML file."""
    from tandem_cli.cluster.report import report as write

    job, other = cluster.job(name), None
    if compare is not None:
        namespace, _, other_name = compare.rpartition("/")
        other = cluster.job(other_name, namespace or None)
    page = out or Path(f"{name}.html")
    write(cluster, job, other, page)
    click.echo(page)


@app.command()
@name_argument
@connected
def suspend(cluster: "Cluster", name: str) -> None:
    """Have a job drain, save a checkpoint and free its devices."""
    from tandem_cli.cluster import wishes

    click.echo(wishes.suspend(cluster, cluster.job(name)))


@app.command()
@name_argument
@connected
def resume(cluster: "Cluster", name: str) -> None:
    """Let a suspended job go on where it stopped."""
    from tandem_cli.cluster import wishes

    click.echo(wishes.resume(cluster, cluster.job(name)))


@app.command()
@name_argument
@click.option("--wait/--no-wait", default=True, help="Wait until it is saved.  [default: wait]")
@click.option("--timeout", type=Duration(), default="3h", show_default=True, help="Longest wait for it.")
@connected
def checkpoint(cluster: "Cluster", name: str, wait: bool, timeout: int) -> None:
    """Have a job save at the end of the next training phase, and wait for that.

    Nothing is interrupted. What is saved covers all iterations that are done now, and the one after.
    """
    from tandem_cli.cluster import wishes

    tell = functools.partial(click.echo, err=True)
    click.echo(wishes.checkpoint(cluster, cluster.job(name), float(timeout) if wait else None, tell))


@app.command()
@name_argument
@connected
def explain(cluster: "Cluster", name: str) -> int:
    """Say why a job does not go on, in a sentence. Exit status 0 if it does, or has succeeded; 1 if not."""
    from tandem_cli.cluster.explain import explain as explanation

    job = cluster.job(name)
    found = explanation(job, cluster.pods(job), cluster.warnings(job), time.time())
    click.echo(found.sentence)
    return 0 if found.going else NOT_PROGRESSING


def run() -> None:
    """The program ``kubectl-tandem``, which kubectl calls for ``kubectl tandem``."""
    try:
        sys.exit(app.main(prog_name="kubectl tandem", standalone_mode=False) or 0)
    except (ClusterError, UserError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(REFUSED)
    except click.ClickException as error:
        error.show()
        sys.exit(REFUSED)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Whoever read us has had enough; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    run()
