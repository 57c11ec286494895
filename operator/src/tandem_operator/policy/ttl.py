# SPDX-License-Identifier: Apache-2.0
"""When a job that has ended is deleted."""

from tandem_api.rljob import RLJobObject
from tandem_api.status import RLJobStatus
from tandem_operator.times import unix


def delete_at(job: RLJobObject, status: RLJobStatus) -> float | None:
    """Unix time at which to delete the RLJob; None for never."""
    ttl = job.spec.run_policy.ttl_seconds_after_finished
    if ttl is None or status.completion_time is None:
        return None
    return unix(status.completion_time) + ttl
