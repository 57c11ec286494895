# SPDX-License-Identifier: Apache-2.0
"""Prometheus finds the pods of a job by a PodMonitor, where the Prometheus operator is installed."""

from tandem_api.labels import COMPONENT_LABEL, JOB_LABEL
from tandem_api.rljob import RLJobObject
from tandem_operator.plan import identity
from tandem_operator.plan.identity import Manifest


def pod_monitor(job: RLJobObject) -> Manifest:
    spec = {
        "selector": {"matchLabels": {JOB_LABEL: job.metadata.name}},
        "podMetricsEndpoints": [{"port": "metrics"}],
        "podTargetLabels": [JOB_LABEL, COMPONENT_LABEL],
    }
    return identity.owned(job, "monitoring.coreos.com/v1", "PodMonitor", job.metadata.name, spec=spec)
