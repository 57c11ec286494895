# SPDX-License-Identifier: Apache-2.0
"""All hybrid pods are placed together or none is, where the cluster has an API for it."""

from tandem_api.labels import HYBRID
from tandem_api.rljob import RLJobObject
from tandem_operator.plan import identity
from tandem_operator.plan.identity import Manifest
from tandem_operator.plan.platform import Gang


def gang_of(job: RLJobObject, served: Gang | None) -> Gang | None:
    """The API by which this job's pods are placed. One pod needs none, but Volcano's nodes want Volcano's scheduler."""
    alone = job.spec.hybrid.replicas == 1
    return None if alone and served is Gang.KUBERNETES else served


def pod_group(job: RLJobObject, gang: Gang) -> Manifest:
    """The group of the job's hybrid pods."""
    minimum = job.spec.hybrid.replicas
    spec = {
        Gang.KUBERNETES: {"schedulingPolicy": {"gang": {"minCount": minimum}}},
        Gang.VOLCANO: {"minMember": minimum},
    }[gang]
    name = identity.hybrid_name(job.metadata.name)
    return identity.owned(job, gang.value, "PodGroup", name, HYBRID, spec=spec)


def membership(job: RLJobObject, gang: Gang | None) -> Manifest:
    """What a pod template says to belong to the group, as a piece of that template."""
    name = identity.hybrid_name(job.metadata.name)
    match gang:
        case Gang.KUBERNETES:
            return {"spec": {"schedulingGroup": {"podGroupName": name}}}
        case Gang.VOLCANO:
            return {
                "metadata": {"annotations": {"scheduling.k8s.io/group-name": name}},
                "spec": {"schedulerName": "volcano"},
            }
        case None:
            return {}
