# SPDX-License-Identifier: Apache-2.0
"""What the operator tells Prometheus of itself."""

from tandem_api import metrics as declared
from tandem_api.exposition import counter, gauge, histogram

requests = counter(declared.API_REQUESTS)
reconciles = histogram(declared.RECONCILE_SECONDS)
queue_depth = gauge(declared.QUEUE_DEPTH)
jobs = gauge(declared.JOBS)
leading = gauge(declared.LEADER)
etcd_up = gauge(declared.ETCD_UP)
