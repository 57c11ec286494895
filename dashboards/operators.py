# SPDX-License-Identifier: Apache-2.0
"""Operator: the program that looks after the jobs."""

from dashboards.panels import Page, Row, View, number, panel
from dashboards.promql import by, quantiles

_OPERATOR = 'namespace=~"$namespaces"'

OPERATOR = Page(
    "tandem-operator",
    "Tandem / Operator",
    "Whether the operator keeps up, and what it talks to.",
    variables=(("namespaces", "Namespace", "label_values(tandem_operator_leader, namespace)"),),
    rows=(
        Row(
            "Reconciliation",
            (
                number(
                    "Leaders",
                    "Replicas that lead; must be 1.",
                    "short",
                    f"sum(tandem_operator_leader{{{_OPERATOR}}})",
                    8,
                ),
                number(
                    "etcd",
                    "1 while the operator reaches etcd.",
                    "short",
                    f"max(tandem_operator_etcd_up{{{_OPERATOR}}})",
                    8,
                ),
                panel(
                    "Jobs by phase",
                    "RLJobs that the operator looks after.",
                    "short",
                    (by(("phase",), f"tandem_operator_jobs{{{_OPERATOR}}}", "max"), "{{phase}}"),
                    view=View.BARS,
                    height=4,
                ),
                panel(
                    "Queue",
                    "Jobs that wait for a worker.",
                    "short",
                    (by(("pod",), f"tandem_operator_queue_depth{{{_OPERATOR}}}", "max"), "{{pod}}"),
                ),
                panel(
                    "Time to reconcile",
                    "One look at one job.",
                    "s",
                    *quantiles("tandem_operator_reconcile_seconds", (), _OPERATOR, "reconcile"),
                ),
                panel(
                    "Reconciliations",
                    "A second, by how they ended.",
                    "ops",
                    (
                        by(
                            ("outcome",),
                            f"rate(tandem_operator_reconcile_seconds_count{{{_OPERATOR}}}[$__rate_interval])",
                        ),
                        "{{outcome}}",
                    ),
                ),
            ),
        ),
        Row(
            "What it talks to",
            (
                panel(
                    "API requests",
                    "Requests to the Kubernetes API a second.",
                    "reqps",
                    (
                        by(
                            ("verb", "kind"),
                            f"rate(tandem_operator_api_requests_total{{{_OPERATOR}}}[$__rate_interval])",
                        ),
                        "{{verb}} {{kind}}",
                    ),
                ),
                panel(
                    "Failed API requests",
                    "Answered with an error.",
                    "reqps",
                    (
                        by(
                            ("code",),
                            f'rate(tandem_operator_api_requests_total{{{_OPERATOR}, code!~"2.."}}[$__rate_interval])',
                        ),
                        "{{code}}",
                    ),
                ),
                panel(
                    "etcd's disk",
                    "99th percentile of a write to the log; above 10 ms phases change slowly.",
                    "s",
                    quantiles("etcd_disk_wal_fsync_duration_seconds", ("pod",), _OPERATOR, "{{pod}}")[1],
                ),
            ),
        ),
    ),
)
