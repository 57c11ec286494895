# SPDX-License-Identifier: Apache-2.0
"""Prometheus finds the pods of a job by a PodMonitor, where the Prometheus operator is installed."""

from tandem_api.rljob import RLJobObject
from tandem_operator.plan import identity
from tandem_operator.plan.identity import Manifest


def pod_monitor(job: RLJobObject) -> Manifest:
    spec = {
        "selector": {"matchLabels": {identity.JOB_LABEL: job.metadata.name}},
        "podMetricsEndpoints": [{"port": "metrics"}],
        "podTargetLabels": [identity.JOB_LABEL, identity.COMPONENT_LABEL],
    }
    return identity.owned(job, "monitoring.coreos.com/v1", "PodMonitor", job.metadata.name, spec=spec)
