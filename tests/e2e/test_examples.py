# SPDX-License-Identifier: Apache-2.0
"""Each example, and every object that the operator would make of it, is accepted by a real API server. Dry runs all."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubectl import ROOT, kubectl

from tandem_api.environment import Secrets
from tandem_api.manifest import load
from tandem_operator.plan import Capabilities, Etcd, Images, Manifest, Platform, plan

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PLATFORM = Platform(
    Images("orchestrator:1", "engine:1", "trainer:1"),
    Etcd(("etcd:2379",)),
    Capabilities(pod_level_resources=True, resource_api="resource.k8s.io/v1"),
)
DRY_RUN = ("apply", "--dry-run=server", "--validate=strict")


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """A namespace whose pods must pass the restricted profile, in a cluster that knows RLJobs."""
    if "rljobs.tandem-rl.dev" not in kubectl("get", "crd", "-o", "name"):
        kubectl("apply", "--server-side", "-f", str(ROOT / "crds" / "rljobs.yaml"))
        kubectl("wait", "--for=condition=Established", "crd/rljobs.tandem-rl.dev", "--timeout=30s")
    name = f"examples-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    kubectl(
        "label", "namespace", name, *(f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn"))
    )
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_accepted(path: Path, namespace: str) -> None:
    assert f"rljob.tandem-rl.dev/{path.stem} created" in kubectl(*DRY_RUN, "-n", namespace, "-f", str(path))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_the_operator_makes_of_it_is_accepted_under_the_restricted_profile(path: Path, namespace: str) -> None:
    job = load(path)
    place = {"namespace": namespace, "uid": str(uuid.uuid4())}
    objects = plan(
        job.model_copy(update={"metadata": job.metadata.model_copy(update=place)}), PLATFORM, Secrets("token")
    )
    # Admission of a pod looks for its account.
    (account,) = (found for found in objects if found["kind"] == "ServiceAccount")
    kubectl("apply", "-f", "-", stdin=listed([without_owner(account)]))
    wanted = [*objects, *(pod_of(found) for found in objects if found["kind"] == "Job")]

    answer = kubectl(*DRY_RUN, "-f", "-", stdin=listed(wanted))

    assert "Warning" not in answer, "the restricted profile warns"
    assert answer.count("(server dry run)") == len(wanted)


def listed(objects: list[Manifest]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


def without_owner(found: Manifest) -> Manifest:
    return found | {"metadata": {key: value for key, value in found["metadata"].items() if key != "ownerReferences"}}


def pod_of(job: Manifest) -> Manifest:
    template = job["spec"]["template"]
    metadata = {**template["metadata"], "name": job["metadata"]["name"], "namespace": job["metadata"]["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
