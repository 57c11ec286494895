# SPDX-License-Identifier: Apache-2.0
"""Pods that claim accelerators get different ones."""

import pytest

from tandem_api.errors import UserError
from tandem_cli.local.devices import Devices
from tandem_cli.local.manifests import Manifest, Manifests

CLAIMING: Manifest = {"resourceClaims": [{"name": "accelerators", "resourceClaimTemplateName": "two"}]}
OBJECTS = Manifests(
    [
        {
            "kind": "ResourceClaimTemplate",
            "metadata": {"name": "two"},
            "spec": {"spec": {"devices": {"requests": [{"name": "accelerators", "exactly": {"count": 2}}]}}},
        }
    ]
)


def test_pods_get_devices_in_order_and_none_twice() -> None:
    devices = Devices({})
    given = [devices.variables(CLAIMING, OBJECTS) for _ in range(2)]
    assert given == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]


def test_only_devices_that_our_own_environment_shows_are_given() -> None:
    devices = Devices({"CUDA_VISIBLE_DEVICES": "5,7,GPU-8"})
    assert devices.variables(CLAIMING, OBJECTS) == {"CUDA_VISIBLE_DEVICES": "5,7"}
    with pytest.raises(UserError, match="more devices than CUDA_VISIBLE_DEVICES lists"):
        devices.variables(CLAIMING, OBJECTS)


def test_a_pod_without_a_claim_is_told_nothing() -> None:
    assert Devices({"CUDA_VISIBLE_DEVICES": "0"}).variables({}, OBJECTS) == {}


def test_a_claim_whose_template_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="ResourceClaimTemplate two"):
        Devices({}).variables(CLAIMING, Manifests([]))
