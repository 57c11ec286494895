# SPDX-License-Identifier: Apache-2.0
"""One set of devices for both containers of a pod."""

from tandem_api.labels import HYBRID
from tandem_api.rljob import RLJobObject
from tandem_api.spec.hybrid import Accelerators, Isolation
from tandem_operator.plan import identity
from tandem_operator.plan.identity import Manifest

_CLAIM = "accelerators"


def claims(accelerators: Accelerators | None) -> bool:
    """Whether the devices come through a ResourceClaim."""
    return accelerators is not None and accelerators.isolation is Isolation.CLAIM


def claim_template(job: RLJobObject, accelerators: Accelerators, api_version: str) -> Manifest:
    """The template of the ResourceClaim that each hybrid pod gets."""
    exactly = {
        "deviceClassName": accelerators.device_class_name,
        "allocationMode": "ExactCount",
        "count": accelerators.count,
    }
    claim = {"devices": {"requests": [{"name": _CLAIM, "exactly": exactly}]}}
    spec = {"metadata": {"labels": identity.labels(job, HYBRID)}, "spec": claim}
    name = identity.accelerators_name(job.metadata.name)
    return identity.owned(job, api_version, "ResourceClaimTemplate", name, HYBRID, spec=spec)


def pod_claims(job: RLJobObject) -> Manifest:
    """What a hybrid pod's spec says of its devices."""
    if not claims(job.spec.hybrid.accelerators):
        return {}
    name = identity.accelerators_name(job.metadata.name)
    return {"resourceClaims": [{"name": _CLAIM, "resourceClaimTemplateName": name}]}


def container_claims(accelerators: Accelerators | None) -> Manifest:
    """What both containers' resources say of the devices."""
    return {"claims": [{"name": _CLAIM}]} if claims(accelerators) else {}


def extended_resources(accelerators: Accelerators | None) -> Manifest:
    """What the trainer alone requests where there is no claim: the engine then sees the node's devices unasked."""
    if accelerators is None or accelerators.isolation is not Isolation.SHARED:
        return {}
    amount = {accelerators.resource_name: str(accelerators.count)}
    return {"requests": amount, "limits": amount}
