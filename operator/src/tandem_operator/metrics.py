# SPDX-License-Identifier: Apache-2.0
"""What the operator tells Prometheus of itself."""

from prometheus_client import Counter, Gauge, Histogram

requests = Counter("tandem_operator_api_requests_total", "Requests to the Kubernetes API.", ["verb", "kind", "code"])
reconciles = Histogram(
    "tandem_operator_reconcile_seconds", "Time to bring one job nearer to what is wanted.", ["outcome"]
)
queue_depth = Gauge("tandem_operator_queue_depth", "Jobs that wait for a worker.")
jobs = Gauge("tandem_operator_jobs", "RLJobs by phase.", ["phase"])
leading = Gauge("tandem_operator_leader", "1 while this replica leads.")
etcd_up = Gauge("tandem_operator_etcd_up", "1 while etcd can be reached.")
