# SPDX-License-Identifier: Apache-2.0
"""The API server and ``tandem validate`` agree on every manifest: the CRD alone refuses what is wrong.

Runs against the cluster that TANDEM_E2E_KUBECONFIG names. Everything is a dry run but one suspended job.
"""

import re
import uuid
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from kubectl import KUBECONFIG
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient
from manifest_cases import BAD, GOOD, MANIFESTS, Case

from tandem_api import GROUP, VERSION
from tandem_api.field_paths import FieldPath, dotted
from tandem_api.manifest import problems, read, spec_problems
from tandem_api.schema import crd

TIMEOUT = 120


@pytest.fixture(scope="module")
def api() -> client.ApiClient:
    """A client of a cluster that has the CRD as the models make it."""
    api = config.new_client_from_config(KUBECONFIG)
    kinds = DynamicClient(api).resources.get(api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition")
    kinds.server_side_apply(body=crd(), field_manager="tandem-e2e", force_conflicts=True)
    name = crd()["metadata"]["name"]
    for event in kinds.watch(name=name, timeout=TIMEOUT):
        conditions = (event["object"].to_dict().get("status") or {}).get("conditions") or []
        if any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions):
            return api
    raise AssertionError(f"{name} is not established after {TIMEOUT} s")


@pytest.fixture(scope="module")
def jobs(api: client.ApiClient) -> client.CustomObjectsApi:
    return client.CustomObjectsApi(api)


@pytest.fixture(scope="module")
def namespace(api: client.ApiClient) -> Iterator[str]:
    core, name = client.CoreV1Api(api), f"verdicts-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    yield name
    core.delete_namespace(name)


def refusal(jobs: client.CustomObjectsApi, body: dict[str, Any], namespace: str) -> str | None:
    """Why the API server would not create this, or None if it would."""
    try:
        jobs.create_namespaced_custom_object(
            GROUP, VERSION, namespace, "rljobs", body, dry_run="All", field_validation="Strict"
        )
    except ApiException as error:
        # 404: a namespace that cannot be.
        if error.status not in (400, 404, 422):
            raise
        return str(error.body)
    return None


@pytest.mark.parametrize("case", [case for case in BAD if case.server], ids=lambda case: case.name)
def test_the_api_server_refuses_what_validate_refuses(
    case: Case, jobs: client.CustomObjectsApi, namespace: str, tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(case.text)
    manifest = read(path)
    (problem,) = problems(manifest)
    body = manifest.document.value

    said = refusal(jobs, body, (body.get("metadata") or {}).get("namespace") or namespace)

    assert said is not None
    # The decoder of metadata names the map, not the key.
    assert any(name in said for name in re.findall(r"\w+", problem.where.partition(".")[2] or problem.where)), said


@pytest.mark.parametrize("name", GOOD)
def test_the_api_server_takes_what_validate_takes(name: str, jobs: client.CustomObjectsApi, namespace: str) -> None:
    body = read(MANIFESTS / f"{name}.yaml").document.value
    body["metadata"].pop("namespace", None)

    assert refusal(jobs, body, namespace) is None


@pytest.mark.parametrize("case", [case for case in BAD if not case.server], ids=lambda case: case.name)
def test_what_only_validate_knows_passes_the_api_server(
    case: Case, jobs: client.CustomObjectsApi, namespace: str, tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(case.text)
    manifest = read(path)
    body = manifest.document.value
    body["metadata"].pop("namespace", None)

    assert problems(manifest)
    assert refusal(jobs, body, namespace) is None


def fields(value: Any, path: FieldPath = ()) -> Iterator[FieldPath]:
    """Every field of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from fields(item, (*path, key))


def with_value(body: dict[str, Any], path: FieldPath, value: Any) -> dict[str, Any]:
    changed = deepcopy(body)
    place: Any = changed
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return changed


@pytest.mark.parametrize("value", [0, 1.5, None, "x y", {}], ids=repr)
@pytest.mark.parametrize("name", ["whole", "random"])
def test_both_say_the_same_whatever_stands_in_a_field(
    name: str, value: Any, jobs: client.CustomObjectsApi, namespace: str
) -> None:
    body = read(MANIFESTS / f"{name}.yaml").document.value
    body["metadata"].pop("namespace", None)
    disagreed = {}
    for path in fields(body["spec"]):
        changed = with_value(body, ("spec", *path), value)
        ours, theirs = spec_problems(changed["spec"]), refusal(jobs, changed, namespace)
        # Of a model's own config the server knows nothing.
        if bool(ours) != bool(theirs) and (theirs or "random" not in path):
            disagreed[dotted(path)] = (ours, theirs)

    assert disagreed == {}


@pytest.fixture(scope="module")
def suspended(jobs: client.CustomObjectsApi, namespace: str) -> str:
    """A job that exists, and at which nobody works."""
    body = read(MANIFESTS / "whole.yaml").document.value
    body["metadata"].pop("namespace")
    body["spec"]["runPolicy"]["suspend"] = True
    jobs.create_namespaced_custom_object(GROUP, VERSION, namespace, "rljobs", body)
    return str(body["metadata"]["name"])


def update_refusal(jobs: client.CustomObjectsApi, namespace: str, name: str, spec: dict[str, Any]) -> str | None:
    try:
        jobs.patch_namespaced_custom_object(
            GROUP, VERSION, namespace, "rljobs", name, {"spec": spec}, dry_run="All", field_validation="Strict"
        )
    except ApiException as error:
        if error.status != 422:
            raise
        return str(error.body)
    return None


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"iterations": 39}, "iterations may only be raised"),
        ({"seed": 2}, "seed is fixed"),
        ({"model": {"dtype": "float32"}}, "model is fixed"),
        ({"data": {"warmup": None}}, "data is fixed"),
        ({"data": {"prompts": [{"path": "/data/other.jsonl"}]}}, "data is fixed"),
        ({"hybrid": {"replicas": 4}}, "hybrid is fixed"),
        ({"hybrid": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}}, "hybrid is fixed"),
        ({"trainer": {"env": []}}, "trainer is fixed"),
        ({"engine": {"releaseBudget": "5Gi"}}, "engine is fixed"),
        ({"orchestrator": {"storage": "5Gi"}}, "orchestrator is fixed"),
        ({"rollout": {"temperature": 0.5}}, "rollout is fixed"),
        ({"algorithm": {"mirrorDescent": {"tau": 0.2}}}, "algorithm is fixed"),
        ({"rewards": [{"name": "math", "math": {}}]}, "rewards is fixed"),
        ({"handoff": {"verify": "Checksums"}}, "handoff is fixed"),
        ({"checkpoint": {"everyIterations": 5}}, "only keep may change"),
        ({"checkpoint": {"volume": None}}, "only keep may change"),
        ({"runPolicy": {"maxRestarts": 11}}, "maxRestarts is fixed"),
    ],
)
def test_what_is_fixed_cannot_be_changed(
    spec: dict[str, Any], says: str, jobs: client.CustomObjectsApi, namespace: str, suspended: str
) -> None:
    assert says in (update_refusal(jobs, namespace, suspended, spec) or "accepted")


@pytest.mark.parametrize(
    "spec",
    [
        {"iterations": 41},
        {"checkpoint": {"keep": 5}},
        {"schedule": {"phaseDeadlines": {"rollout": "3h"}}},
        {"runPolicy": {"suspend": False}},
        {"runPolicy": {"ttlSecondsAfterFinished": None, "activeDeadlineSeconds": 60}},
    ],
    ids=lambda spec: next(iter(spec)),
)
def test_what_may_change_can_be_changed(
    spec: dict[str, Any], jobs: client.CustomObjectsApi, namespace: str, suspended: str
) -> None:
    assert update_refusal(jobs, namespace, suspended, spec) is None
