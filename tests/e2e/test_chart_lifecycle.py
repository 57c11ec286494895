# SPDX-License-Identifier: Apache-2.0
"""A release is installed, tested, upgraded, rolled back, uninstalled and installed again; a job outlives all of it."""

import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from kubectl import CHART, ENVIRONMENT, ROOT, TEST_ETCD, helm, kubectl, objects, one
from waiting import until

RELEASE = "lifecycle"
JOB = "outlives"
COLUMN = "Restarts"
"""What the older CRD does not have."""


@dataclass(frozen=True)
class Release:
    namespace: str
    older: Path


def older_chart(directory: Path) -> Path:
    """This chart as its previous version, with a CRD that lacks a column; the images are this version's."""
    shutil.copytree(CHART, directory)
    chart = yaml.safe_load((directory / "Chart.yaml").read_text())
    (directory / "Chart.yaml").write_text(yaml.safe_dump({**chart, "version": "0.0.9"}))
    crd = yaml.safe_load((directory / "files" / "rljobs.yaml").read_text())
    columns = crd["spec"]["versions"][0]["additionalPrinterColumns"]
    columns.remove(next(column for column in columns if column["name"] == COLUMN))
    (directory / "files" / "rljobs.yaml").write_text(yaml.safe_dump(crd))
    return directory


def columns() -> list[str]:
    crd = one("crd", "rljobs.tandem-rl.dev", "default")
    return [column["name"] for column in crd["spec"]["versions"][0]["additionalPrinterColumns"]]


def install(release: Release, chart: Path) -> None:
    helm(
        *("upgrade", "--install", RELEASE, str(chart), "-n", release.namespace, "--create-namespace"),
        # The definition may be there already, from other hands: that is for the one who installs to decide.
        *("--take-ownership", "--force-conflicts", "--wait", "--timeout", "5m", *TEST_ETCD),
        *("--set", f"namespaces={{{release.namespace}}}", "--set", "etcd.tls.enabled=true"),
    )


def uninstall(release: Release) -> None:
    helm("uninstall", RELEASE, "-n", release.namespace, "--wait", "--timeout", "5m", "--ignore-not-found")


def looked_after(release: Release) -> bool:
    """The operator has answered the newest generation of the job."""
    job = one("rljob", JOB, release.namespace)
    return bool(job.get("status", {}).get("observedGeneration") == job["metadata"]["generation"])


def change(release: Release) -> None:
    """A new generation of the job, which only a living operator can answer."""
    job = one("rljob", JOB, release.namespace)
    kubectl(
        *("patch", "rljob", JOB, "-n", release.namespace, "--type=merge", "-p"),
        f'{{"spec": {{"iterations": {job["spec"]["iterations"] + 1}}}}}',
    )


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The previous version, and a suspended job that it looks after."""
    made = Release(f"chart-{uuid.uuid4().hex[:6]}", older_chart(tmp_path_factory.mktemp("older") / "tandem"))
    try:
        install(made, made.older)
        apply_suspended_job(made)
        yield made
        kubectl("delete", "rljob", "--all", "-n", made.namespace, "--timeout=2m")
    finally:
        uninstall(made)
        kubectl("delete", "namespace", made.namespace, "--wait=false")


def apply_suspended_job(release: Release) -> None:
    job = yaml.safe_load((ROOT / "examples" / "chain-sum.yaml").read_text())
    job["metadata"]["name"] = JOB
    job["spec"]["runPolicy"] = {"suspend": True}
    kubectl("apply", "-n", release.namespace, "-f", "-", stdin=yaml.safe_dump(job))
    kubectl("wait", "-n", release.namespace, f"rljob/{JOB}", "--for=condition=Suspended", "--timeout=2m")


def test_helm_test_finds_operator_and_etcd(release: Release) -> None:
    assert "Phase:          Succeeded" in helm("test", RELEASE, "-n", release.namespace, "--timeout", "3m")


def test_an_upgrade_brings_the_new_crd_and_keeps_the_job(release: Release) -> None:
    before = one("rljob", JOB, release.namespace)["metadata"]["uid"]
    assert COLUMN not in columns()
    install(release, CHART)
    assert COLUMN in columns()
    assert one("rljob", JOB, release.namespace)["metadata"]["uid"] == before
    change(release)
    until(lambda: looked_after(release), 120.0, "the upgraded operator answers a change of the job")


def test_another_number_of_etcds_members_is_refused_before_anything_is_changed(release: Release) -> None:
    command = ("helm", "upgrade", RELEASE, CHART, "-n", release.namespace, "--reuse-values", "--set", "etcd.replicas=3")
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "the number cannot be changed. Set etcd.replicas=1" in done.stderr
    assert one("statefulset", f"{RELEASE}-etcd", release.namespace)["spec"]["replicas"] == 1


def test_a_rollback_leaves_the_job_to_the_previous_operator(release: Release) -> None:
    before = one("rljob", JOB, release.namespace)["metadata"]["uid"]
    helm("rollback", RELEASE, "1", "-n", release.namespace, "--wait", "--timeout", "5m")
    assert one("rljob", JOB, release.namespace)["metadata"]["uid"] == before
    change(release)
    until(lambda: looked_after(release), 120.0, "the operator of before answers a change of the job")


def test_uninstalling_deletes_no_job_and_leaves_what_the_notes_name(release: Release) -> None:
    before = one("rljob", JOB, release.namespace)["metadata"]["uid"]
    uninstall(release)
    assert one("rljob", JOB, release.namespace)["metadata"]["uid"] == before
    ours = f"app.kubernetes.io/instance={RELEASE}"
    kinds = (
        "deployments,statefulsets,services,networkpolicies,roles,rolebindings,configmaps,serviceaccounts,secrets,pvc"
    )
    left = {f"{found['kind']}/{found['metadata']['name']}" for found in objects(kinds, release.namespace, "-l", ours)}
    assert left == {
        f"PersistentVolumeClaim/data-{RELEASE}-etcd-0",
        f"Secret/{RELEASE}-etcd-root",
        f"Secret/{RELEASE}-etcd-tls",
    }


def test_installing_again_takes_over_the_job_and_etcds_volume(release: Release) -> None:
    install(release, CHART)
    change(release)
    until(lambda: looked_after(release), 120.0, "the new operator answers a change of the job")
