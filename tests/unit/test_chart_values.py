# SPDX-License-Identifier: Apache-2.0
"""The chart's values: closed, described, and in step with the CRD and with what the operator reads."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from operator_fixture import merged

from tandem_operator.configuration import Choice

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tandem"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def problems(patch: dict[str, Any]) -> list[str]:
    errors = jsonschema.Draft7Validator(SCHEMA).iter_errors(merged(VALUES, patch))
    return ["/".join(map(str, error.absolute_path)) for error in errors]


def test_the_chart_carries_the_crd_as_it_is_generated() -> None:
    assert (CHART / "files" / "rljobs.yaml").read_text() == (ROOT / "crds" / "rljobs.yaml").read_text(), (
        "run: make generate"
    )


def test_the_defaults_are_valid() -> None:
    assert problems({}) == []


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"operatr": {}}, ""),
    ({"operator": {"replica": 2}}, "operator"),
    ({"operator": {"replicas": 0}}, "operator/replicas"),
    ({"operator": {"replicas": "2"}}, "operator/replicas"),
    ({"operator": {"workers": 1000}}, "operator/workers"),
    ({"operator": {"resources": {"limit": {}}}}, "operator/resources"),
    ({"operator": {"resources": {"limits": {"memory": "lots"}}}}, "operator/resources/limits/memory"),
    ({"operator": {"leaderElection": {"duration": 0}}}, "operator/leaderElection/duration"),
    ({"images": {"pullPolicy": "Sometimes"}}, "images/pullPolicy"),
    ({"images": {"engine": {"digest": "sha256:abc"}}}, "images/engine/digest"),
    ({"images": {"engine": {"repository": "x"}}}, "images/engine"),
    ({"namespaces": "team"}, "namespaces"),
    ({"namespaces": ["Team"]}, "namespaces/0"),
    ({"namespaces": ["a", "a"]}, "namespaces"),
    ({"features": {"gangScheduling": True}}, "features/gangScheduling"),
    ({"features": {"podMonitors": "Always"}}, "features/podMonitors"),
    ({"crds": {"install": "yes"}}, "crds/install"),
    ({"etcd": {"replicas": 2}}, "etcd/replicas"),
    ({"etcd": {"storage": {"size": "big"}}}, "etcd/storage/size"),
    ({"etcd": {"quotaBytes": "2Gi"}}, "etcd/quotaBytes"),
    ({"etcd": {"endpoints": ["http://etcd:2379"]}}, "etcd/endpoints/0"),
    ({"etcd": {"bundled": False}}, "etcd/endpoints"),
    ({"etcd": {"bundled": False, "endpoints": ["etcd:2379"]}}, "etcd/auth/existingSecret"),
    (
        {"etcd": {"bundled": False, "endpoints": ["e:2379"], "auth": {"enabled": False}, "tls": {"enabled": True}}},
        "etcd/tls/existingSecret",
    ),
    ({"etcd": {"tls": {"secret": "a"}}}, "etcd/tls"),
    ({"etcd": {"tls": True}}, "etcd/tls"),
    ({"jobs": {"tls": True}}, "jobs/tls"),
    ({"jobs": {"tls": {"enabled": "yes"}}}, "jobs/tls/enabled"),
    ({"networkPolicies": {"enable": True}}, "networkPolicies"),
    ({"monitoring": {"serviceMonitor": {"interval": "often"}}}, "monitoring/serviceMonitor/interval"),
    ({"monitoring": {"traces": {"endpoint": "collector:4318"}}}, "monitoring/traces/endpoint"),
    ({"fullnameOverride": "Tandem"}, "fullnameOverride"),
]


@pytest.mark.parametrize(("patch", "path"), WRONG, ids=[json.dumps(patch) for patch, _ in WRONG])
def test_a_wrong_value_is_refused_at_its_path(patch: dict[str, Any], path: str) -> None:
    assert path in problems(patch)


def objects(schema: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = []
    if isinstance(schema, dict):
        if schema.get("type") == "object" and "properties" in schema:
            found.append((path, schema))
        for key, value in schema.items():
            if key not in ("if", "then", "allOf"):
                found += objects(value, f"{path}/{key}")
    return found


def test_every_object_with_fields_is_closed() -> None:
    assert [path for path, schema in objects(SCHEMA) if schema.get("additionalProperties") is not False] == []


def test_every_value_has_prose_above_it_or_stands_in_a_described_group() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    undescribed = []
    described: dict[int, bool] = {}
    for before, line in zip(["", *lines], lines, strict=False):
        match = re.match(r"( *)([A-Za-z]+):", line)
        if match is None:
            continue
        depth = len(match[1])
        above = before.strip().startswith("#")
        described[depth] = above or (re.match(r" *[A-Za-z]+:", before) is not None and described.get(depth, False))
        in_described_group = any(described.get(outer, False) for outer in range(0, depth, 2))
        if not described[depth] and not in_described_group and not line.rstrip().endswith(":"):
            undescribed.append(line.strip())
    assert undescribed == []


def test_the_schema_knows_every_default_and_the_defaults_every_field() -> None:
    def paths(values: Any, schema: dict[str, Any], path: str = "") -> list[str]:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        if "properties" not in schema:
            return []
        missing = [
            f"{path}/{name}" for name in schema["properties"] if name not in values and name not in ("global", "claims")
        ]
        inner = [
            found
            for name, value in values.items()
            for found in paths(value, schema["properties"][name], f"{path}/{name}")
        ]
        return missing + inner

    assert paths(VALUES, SCHEMA) == []


def test_features_have_the_choices_that_the_operator_reads() -> None:
    assert SCHEMA["$defs"]["choice"]["enum"] == [choice.value for choice in Choice]
