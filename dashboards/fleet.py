# SPDX-License-Identifier: Apache-2.0
"""Fleet: all jobs."""

from dashboards.panels import Page, Row, View, number, panel
from dashboards.promql import JOB, by, utilisation

_FLEET = 'namespace=~"$namespaces"'
_JOB = ("namespace", JOB)
_NAME = f"{{{{namespace}}}}/{{{{{JOB}}}}}"
_TO_RUN = (
    f"/d/tandem-run?var-namespace=${{__field.labels.namespace}}&var-job=${{__field.labels.{JOB}}}&${{__url_time_range}}"
)

FLEET = Page(
    "tandem-fleet",
    "Tandem / Fleet",
    "All jobs: what they are doing, how much of the accelerators' time is work, and which are stuck.",
    variables=(("namespaces", "Namespace", "label_values(tandem_iteration, namespace)"),),
    rows=(
        Row(
            "All jobs",
            (
                number(
                    "Utilisation",
                    "Rollout and training work over all time held, in the last hour. Phases are booked when the one "
                    "after has ended.",
                    "percentunit",
                    utilisation(_FLEET, (), "1h"),
                ),
                number("Jobs", "Jobs with an orchestrator.", "short", f"count(tandem_iteration{{{_FLEET}}})"),
                number(
                    "Tokens",
                    "Tokens generated a second, by all engines.",
                    "suffix: tok/s",
                    f"sum(rate(tandem_tokens_total{{{_FLEET}}}[$__rate_interval]))",
                ),
                number(
                    "Alerts",
                    "Alerts of Tandem that fire.",
                    "short",
                    'count(ALERTS{alertname=~"Tandem.*", alertstate="firing"}) or vector(0)',
                ),
                panel(
                    "Jobs by phase",
                    "As their status says; also those that wait for pods.",
                    "short",
                    (by(("phase",), "tandem_operator_jobs", "max"), "{{phase}}"),
                    view=View.BARS,
                    height=4,
                ),
            ),
        ),
        Row(
            "Each job",
            (
                panel(
                    "Utilisation",
                    "Share of the held time that was work, over the last 30 minutes.",
                    "percentunit",
                    (utilisation(_FLEET, _JOB, "30m"), _NAME),
                    width=12,
                    link=_TO_RUN,
                ),
                panel(
                    "Progress",
                    "Iterations begun of those wanted.",
                    "percentunit",
                    (by(_JOB, f"tandem_iteration{{{_FLEET}}} / tandem_iterations{{{_FLEET}}}", "max"), _NAME),
                    view=View.BARS,
                    width=12,
                    link=_TO_RUN,
                ),
                panel(
                    "Phase",
                    "What the pods of each job do.",
                    "short",
                    (by(_JOB, f"tandem_member_activity{{{_FLEET}}}", "max"), _NAME),
                    view=View.STATES,
                    width=24,
                    link=_TO_RUN,
                ),
                panel(
                    "Time in this phase",
                    "A line that only rises is a job that is stuck.",
                    "s",
                    (f"time() - {by(_JOB, f'tandem_phase_start_timestamp_seconds{{{_FLEET}}}', 'max')}", _NAME),
                    link=_TO_RUN,
                ),
                panel(
                    "Tokens",
                    "Tokens generated a second.",
                    "suffix: tok/s",
                    (by(_JOB, f"rate(tandem_tokens_total{{{_FLEET}}}[$__rate_interval])"), _NAME),
                    link=_TO_RUN,
                ),
                panel(
                    "Reward",
                    "Mean score of the last batch.",
                    "short",
                    (by(_JOB, f"tandem_reward{{{_FLEET}}}", "max"), _NAME),
                    link=_TO_RUN,
                ),
            ),
        ),
    ),
)
