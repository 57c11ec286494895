# SPDX-License-Identifier: Apache-2.0
"""How many hybrid pods a drain may take at once."""

from tandem_api.labels import HYBRID
from tandem_api.rljob import RLJobObject
from tandem_operator.plan import identity
from tandem_operator.plan.identity import Manifest


def disruption_budget(job: RLJobObject) -> Manifest:
    """One at a time: each eviction costs the job a recovery, and a drain must still come to an end.

    For jobs of several pods: there is nothing to say of the only one.
    As minAvailable, since Kubernetes works maxUnavailable out only for owners that can be scaled, unlike Jobs.
    """
    spec = {
        "minAvailable": job.spec.hybrid.replicas - 1,
        "selector": {"matchLabels": identity.selector(job, HYBRID)},
    }
    name = identity.hybrid_name(job.metadata.name)
    return identity.owned(job, "policy/v1", "PodDisruptionBudget", name, HYBRID, spec=spec)
