# SPDX-License-Identifier: Apache-2.0
"""The front door: helm install, kubectl apply, Complete, helm uninstall; real images, real pods."""

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubectl import ENVIRONMENT, RELEASE, ROOT, SYSTEM, helm, kubectl, objects, one

JOB = "chain-sum"
MINUTES = 45


@pytest.fixture(scope="module")
def namespace(installed: None) -> Iterator[str]:
    """The job's namespace, under the restricted profile; its pods' logs are printed when it goes."""
    name = f"e2e-{uuid.uuid4().hex[:6]}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    kubectl("apply", "-n", name, "-f", str(ROOT / "examples" / "chain-sum.yaml"))
    yield name
    print(kubectl("get", "pods,rljobs,events", "-n", name, "-o", "wide"))
    kubectl("delete", "namespace", name, "--wait=true", "--timeout=5m")


@pytest.fixture(scope="module")
def complete(namespace: str) -> dict[str, Any]:
    kubectl("wait", "-n", namespace, f"rljob/{JOB}", "--for=condition=Complete", f"--timeout={MINUTES}m")
    return one("rljob", JOB, namespace)


pytestmark = pytest.mark.timeout((MINUTES + 15) * 60)


def until_an_iteration_is_done(namespace: str) -> None:
    """`kubectl wait` wants an exact number, which a watcher may miss."""
    iteration = ("-o", "jsonpath={.status.iteration}{'\\n'}")
    command = ["kubectl", "get", "rljob", JOB, "-n", namespace, "--watch", *iteration]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert any(int(line) >= 1 for line in watching.stdout if line.strip())
        watching.terminate()


def test_the_plugin_tells_of_a_running_job_and_has_it_save(namespace: str) -> None:
    until_an_iteration_is_done(namespace)
    kubectl("tandem", "checkpoint", JOB, "-n", namespace, "--timeout", "15m")
    # Far from the eighth iteration, after which it would have saved by itself.
    assert 0 < one("rljob", JOB, namespace)["status"]["checkpoint"]["iteration"] < 8
    assert "is progressing" in kubectl("tandem", "explain", JOB, "-n", namespace)
    logs = kubectl("tandem", "logs", JOB, "-n", namespace, "--tail", "50")
    assert all(f" {source} " in logs for source in ("orchestrator", "hybrid-0/engine", "hybrid-0/trainer"))
    _, total, pod = kubectl("tandem", "top", JOB, "-n", namespace).splitlines()
    assert all(0 < float(row.split()[2].rstrip("%")) < 100 for row in (total, pod))


def test_an_applied_job_runs_to_complete_under_the_restricted_profile(complete: dict[str, Any]) -> None:
    status = complete["status"]
    assert status["phase"] == "Succeeded"
    assert status["iteration"] == status["weightVersion"] == complete["spec"]["iterations"]


def test_the_accuracy_in_status_is_above_the_warm_ups(complete: dict[str, Any]) -> None:
    assert complete["status"]["accuracy"] > 0.75


def test_weights_went_through_memory_that_two_containers_share(complete: dict[str, Any], namespace: str) -> None:
    (pod,) = objects("pods", namespace, "-l", "app.kubernetes.io/component=hybrid")
    (engine,), (trainer,) = pod["spec"]["initContainers"], pod["spec"]["containers"]
    shared = {
        volume["name"] for volume in pod["spec"]["volumes"] if volume.get("emptyDir", {}).get("medium") == "Memory"
    }
    both = {mount["name"] for mount in engine["volumeMounts"]} & {mount["name"] for mount in trainer["volumeMounts"]}
    assert shared & both
    assert not pod["spec"].get("shareProcessNamespace")
    assert complete["status"]["lastSwitch"]["toRolloutSeconds"] > 0


def test_the_plugin_writes_the_report_of_a_job_that_has_ended(
    complete: dict[str, Any], namespace: str, tmp_path: Path
) -> None:
    kubectl("tandem", "report", JOB, "-n", namespace, "--out", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert all(f'"iteration":{number},' in page for number in range(complete["spec"]["iterations"]))


def test_a_job_leaves_nothing_when_it_is_deleted(complete: dict[str, Any], namespace: str) -> None:
    kubectl("delete", "rljob", JOB, "-n", namespace, "--cascade=foreground", "--timeout=5m")
    for kind in ("jobs", "pods", "services", "pvc", "secrets", "networkpolicies", "poddisruptionbudgets"):
        assert objects(kind, namespace, "-l", f"tandem-rl.dev/job={JOB}") == []


def test_uninstalling_leaves_the_crd_and_etcds_volume_and_secret(complete: dict[str, Any]) -> None:
    helm("uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "5m")
    assert kubectl("get", "crd", "rljobs.tandem-rl.dev", "-o", "name").strip()
    left = {
        f"{found['kind']}/{found['metadata']['name']}"
        for kind in ("deployments", "statefulsets", "services", "networkpolicies", "roles", "rolebindings", "pvc")
        for found in objects(kind, SYSTEM)
    }
    assert all(name.startswith("PersistentVolumeClaim/") for name in left), left
