# SPDX-License-Identifier: Apache-2.0
"""ResourceClaims on this machine: each pod gets devices of its own, shared by its containers."""

import os
from collections.abc import Iterator, Mapping

from tandem_api.errors import Problem, UserError
from tandem_cli.local.manifests import Manifest, Manifests, dig

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Devices:
    """The accelerators of this machine, given out in order; those that our own environment shows, if it says.

    >>> Devices({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}).variables(pod_spec_claiming_two, objects)
    {'CUDA_VISIBLE_DEVICES': '4,5'}
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        listed = environment.get(VISIBLE)
        self._free: Iterator[str] = iter(listed.split(",")) if listed else map(str, range(10**6))

    def variables(self, spec: Manifest, objects: Manifests) -> dict[str, str]:
        """The variables by which a pod's containers see the devices that its claims ask for.

        Raises:
            UserError: there are not as many, or a claim's template is missing.
        """
        wanted = sum(_count(claim, objects) for claim in spec.get("resourceClaims") or [])
        if not wanted:
            return {}
        given = [device for _, device in zip(range(wanted), self._free, strict=False)]
        if len(given) < wanted:
            raise UserError(
                Problem(
                    "spec.hybrid", f"the pods ask for more devices than {VISIBLE} lists; one of them lacks {wanted}"
                )
            )
        return {VISIBLE: ",".join(given)}


def _count(claim: Manifest, objects: Manifests) -> int:
    template = objects.one("ResourceClaimTemplate", claim["resourceClaimTemplateName"], f"claim {claim['name']}")
    requests = dig(template, "spec", "spec", "devices", "requests", default=[])
    return sum(int(dig(request, "exactly", "count", default=1)) for request in requests)
