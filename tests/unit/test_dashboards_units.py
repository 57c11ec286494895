# SPDX-License-Identifier: Apache-2.0
"""What the check of dashboards refuses, and what it reads out of an expression."""

import pytest
from dashboards.check import problems
from dashboards.panels import Panel, Query
from dashboards.units import Mistake, value_of

PHASE = "tandem_phase_seconds_total"
STEP = "tandem_switch_step_seconds"


@pytest.mark.parametrize(
    ("expression", "unit"),
    [
        ("max(tandem_reward)", "short"),
        ("avg(tandem_accelerator_busy_ratio)", "percentunit"),
        (f"rate({PHASE}[5m])", "percentunit"),
        (f"increase({PHASE}[5m])", "s"),
        ("sum(rate(tandem_tokens_total[5m]))", "suffix: tok/s"),
        ("rate(tandem_samples_total[5m])", "ops"),
        ("tandem_iteration / tandem_iterations", "percentunit"),
        (f"sum by (step) (increase({STEP}_sum[5m])) / sum by (step) (increase({STEP}_count[5m]))", "s"),
        (f"histogram_quantile(0.99, sum by (le, step) (rate({STEP}_bucket[5m])))", "s"),
        ("time() - max(tandem_phase_start_timestamp_seconds)", "s"),
        ("min(tandem_buffer_free_bytes)", "bytes"),
        ("count(ALERTS) or vector(0)", "short"),
    ],
)
def test_the_unit_follows_from_the_declared_metrics(expression: str, unit: str) -> None:
    assert value_of(expression).units[0] == unit


@pytest.mark.parametrize(
    ("expression", "mistake"),
    [
        ("tandem_unheard_of", "tandem_unheard_of is not declared"),
        (f"sum({PHASE})", "not under rate or increase"),
        (f"{PHASE} / {PHASE}", "not under rate or increase"),
        ("rate(tandem_reward[5m])", "no counter"),
        (f"rate({STEP}[5m])", "is a histogram"),
        (f"sum by (le) (rate({STEP}_bucket[5m]))", "need histogram_quantile"),
        (f"histogram_quantile(0.5, rate({STEP}_sum[5m]))", "needs the buckets"),
        ("sum by (trajectory) (tandem_reward)", "no such label"),
        ("time() - max(tandem_reward)", "less"),
        ("max(tandem_reward) trailing", "cannot read"),
        ("deriv(tandem_reward[5m])", "not a function"),
    ],
)
def test_expressions_that_do_not_fit_their_metrics_are_refused(expression: str, mistake: str) -> None:
    with pytest.raises(Mistake, match=mistake):
        value_of(expression)


def test_a_panel_with_the_wrong_unit_or_legend_is_refused() -> None:
    panel = Panel("Memory", "What is left.", "s", (Query("max(tandem_engine_residual_bytes)", "pod {{member}}"),))
    unit, legend = problems(panel)
    assert "shows s, but measures ('bytes',)" in unit
    assert "{{member}}" in legend


def test_a_legend_that_does_not_tell_series_apart_and_a_missing_description_are_refused() -> None:
    panel = Panel("Memory", "", "bytes", (Query("max by (member) (tandem_engine_residual_bytes)", "memory"),))
    description, legend = problems(panel)
    assert description == "has no description"
    assert "differ in ['member']" in legend
