# SPDX-License-Identifier: Apache-2.0
"""Expressions that several panels share."""

from collections.abc import Sequence

from tandem_api.utilisation import WORK

JOB = "tandem_rl_dev_job"
"""The label that a PodMonitor makes of tandem-rl.dev/job."""


def by(labels: Sequence[str], expression: str, aggregation: str = "sum") -> str:
    """``expression`` aggregated to ``labels``; without any, to one series."""
    return f"{aggregation} by ({', '.join(labels)}) ({expression})" if labels else f"{aggregation} ({expression})"


def utilisation(selector: str, labels: Sequence[str], window: str) -> str:
    """Rollout and training work over the time held."""
    held = "tandem_accelerator_seconds_total"
    work = by(labels, f'rate({held}{{{selector}, use=~"{"|".join(WORK)}"}}[{window}])')
    return f"{work} / {by(labels, f'rate({held}{{{selector}}}[{window}])')}"


def quantiles(metric: str, labels: Sequence[str], selector: str, legend: str) -> tuple[tuple[str, str], ...]:
    """(expression, legend) of a histogram's median and 99th percentile."""
    inner = by(("le", *labels), f"rate({metric}_bucket{{{selector}}}[$__rate_interval])")
    return tuple(
        (f"histogram_quantile({quantile}, {inner})", f"{legend} p{round(100 * quantile)}") for quantile in (0.5, 0.99)
    )
