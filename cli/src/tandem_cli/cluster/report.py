# SPDX-License-Identifier: Apache-2.0
"""``kubectl tandem report``: the page of local mode, of jobs on a cluster."""

from dataclasses import replace
from pathlib import Path

from tandem_cli.cluster.objects import Cluster, Job
from tandem_cli.cluster.reading import figures
from tandem_cli.report.data import RunData, rows
from tandem_cli.report.page import write_report


def report(cluster: Cluster, job: Job, other: Job | None, out: Path) -> None:
    """Write the page of a job, or of two side by side.

    Raises:
        ClusterError: the figures cannot be read.
    """
    first, second = run_data(cluster, job), run_data(cluster, other) if other else None
    if second is not None and first.name == second.name:
        first, second = (replace(run, name=str(run.directory)) for run in (first, second))
    write_report(out, first, second)


def run_data(cluster: Cluster, job: Job) -> RunData:
    """What a job has left behind so far."""
    content = {name: text.decode() for name, text in figures(cluster, job).items()}
    return RunData(
        name=job.name,
        directory=Path(job.namespace) / job.name,
        metrics=rows(content.get("metrics.jsonl", ""), "metrics.jsonl"),
        timeline=rows(content.get("timeline.jsonl", ""), "timeline.jsonl"),
        status=job.status,
        spec=job.spec,
    )
