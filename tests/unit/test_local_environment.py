# SPDX-License-Identifier: Apache-2.0
"""Containers get the variables that a kubelet would give them."""

import base64
from pathlib import Path

import pytest

from tandem_api.errors import UserError
from tandem_cli.local.environment import PodFacts, expand, variables
from tandem_cli.local.manifests import Manifest, Manifests
from tandem_cli.local.rewriting import Rewriting

POD = PodFacts("p-0", "ns", "uid-1", "127.1.1.10", {"example.org/index": "0"}, {"app": "x"})
OBJECTS = Manifests(
    [
        {"kind": "Secret", "metadata": {"name": "s"}, "data": {"token": base64.b64encode(b"hush").decode()}},
        {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"A": "1", "B": "2"}},
    ]
)
NO_REWRITING = Rewriting({}, {})


def seen(*env: Manifest, rewriting: Rewriting = NO_REWRITING, **container: object) -> dict[str, str]:
    return dict(variables({"name": "c", "env": list(env), **container}, POD, OBJECTS, rewriting).seen)


def from_field(path: str) -> Manifest:
    return {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "p-0"),
        ("metadata.namespace", "ns"),
        ("metadata.uid", "uid-1"),
        ("status.podIP", "127.1.1.10"),
        ("metadata.annotations['example.org/index']", "0"),
        ("metadata.labels['app']", "x"),
        ("metadata.labels['absent']", ""),
    ],
)
def test_fields_of_the_pod(path: str, value: str) -> None:
    assert seen(from_field(path)) == {"X": value}


def test_a_field_that_local_mode_does_not_have_is_named() -> None:
    with pytest.raises(UserError, match=r"limits\.cpu"):
        seen(from_field("limits.cpu"))


def test_values_from_secrets_and_config_maps() -> None:
    secret = {"name": "T", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}}
    config = {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "A"}}}
    assert seen(secret, config) == {"T": "hush", "A": "1"}
    assert seen(envFrom=[{"prefix": "C_", "configMapRef": {"name": "c"}}]) == {"C_A": "1", "C_B": "2"}


def test_an_optional_key_that_is_missing_leaves_the_variable_unset_and_a_required_one_is_an_error() -> None:
    reference = {"name": "c", "key": "Z"}
    assert seen({"name": "Z", "valueFrom": {"configMapKeyRef": reference | {"optional": True}}}) == {}
    with pytest.raises(UserError, match="has no key Z"):
        seen({"name": "Z", "valueFrom": {"configMapKeyRef": reference}})


def test_a_missing_secret_is_named_with_who_refers_to_it() -> None:
    with pytest.raises(UserError, match=r"env T.*Secret gone"):
        seen({"name": "T", "valueFrom": {"secretKeyRef": {"name": "gone", "key": "k"}}})


def test_expansion_follows_kubernetes() -> None:
    values = {"A": "1", "B": "x$(A)"}
    assert expand("$(A)-$(UNKNOWN)-$$(A)-$A-$(B)", values) == "1-$(UNKNOWN)-$(A)-$A-x$(A)"


def test_later_variables_refer_to_earlier_ones_and_paths_are_rewritten_once() -> None:
    rewriting = Rewriting({"/tmp": Path("/tmp/run/3/tmp")}, {})
    env = seen({"name": "HOME", "value": "/tmp"}, {"name": "CACHE", "value": "$(HOME)/cache"}, rewriting=rewriting)
    assert env == {"HOME": "/tmp/run/3/tmp", "CACHE": "/tmp/run/3/tmp/cache"}


def test_values_from_fields_and_secrets_are_never_rewritten() -> None:
    rewriting = Rewriting({}, {"p-0": "127.1.1.10"})
    assert seen(from_field("metadata.name"), rewriting=rewriting) == {"X": "p-0"}
