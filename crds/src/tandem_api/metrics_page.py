# SPDX-License-Identifier: Apache-2.0
"""docs/metrics.md, made from the declared metrics: ``python -m tandem_api.metrics_page [--check]``."""

from collections.abc import Iterator
from pathlib import Path

from tandem_api import metrics
from tandem_api.generated import write_or_check
from tandem_api.metrics import Label, Metric, Process

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"

_HEAD = """\
<!-- Made by `python -m tandem_api.metrics_page` from tandem_api/metrics.py; change that. -->
# Metrics

Orchestrator and sidecars serve Prometheus's text format at `/metrics` on port 9400 of their pod, the operator on its
HTTP port. Where the Prometheus operator is installed, each RLJob gets a PodMonitor, and its series carry the labels
`namespace`, `pod` and `tandem_rl_dev_job` (the name of the RLJob). Names, types, units and labels are an interface:
they change only with a note in the release.

No label has values that grow with a run: there are no ids of trajectories or prompts. Counters of the orchestrator
that concern time count on from the timeline when it is restarted. What an iteration measures is NaN, or has no series,
until the first has measured it. `tandem_accelerator_*` is defined in [utilisation.md](utilisation.md).

What Prometheus cannot tell, such as whom the others waited for in one iteration, is in the [traces](tracing.md); curves
for TensorBoard and W&B are in [files of the run](curves.md).
"""
_SIZES = (1, 2, 16, 256)


def page() -> str:
    """The text of docs/metrics.md."""
    parts = [_HEAD, *_bounds()]
    for process in Process:
        parts += [f"## {process.value.capitalize()}\n", *_table(metrics.of(process))]
    return "\n".join([*parts, *_labels()])


def _bounds() -> Iterator[str]:
    sizes = ", ".join(f"{metrics.series_per_job(size)} with {size}" for size in _SIZES)
    yield f"Most time series of a job, by its number of hybrid pods: {sizes}.\n"


def _table(declared: tuple[Metric, ...]) -> Iterator[str]:
    yield "| Metric | Type | Unit | Labels | Meaning |\n|---|---|---|---|---|"
    for metric in declared:
        labels = ", ".join(f"`{label.name}`" for label in metric.labels)
        yield f"| `{metric.name}` | {metric.kind} | {metric.unit} | {labels} | {metric.help} |"
    yield ""


def _labels() -> Iterator[str]:
    yield "## Labels\n\n| Label | Of | Meaning | Values |\n|---|---|---|---|"
    users: dict[Label, list[str]] = {}
    for metric in metrics.ALL:
        for label in metric.labels:
            users.setdefault(label, []).append(f"`{metric.name}`")
    for label, names in users.items():
        yield f"| `{label.name}` | {', '.join(names)} | {label.help} | {_values(label)} |"
    yield ""


def _values(label: Label) -> str:
    if label.values:
        return ", ".join(f"`{value}`" for value in label.values)
    return f"at most {label.most}" if label.most else "one for each hybrid pod"


if __name__ == "__main__":
    write_or_check(PAGE, page())
