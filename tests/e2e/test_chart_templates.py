# SPDX-License-Identifier: Apache-2.0
"""What the chart renders is accepted by a real API server, in every documented combination of values."""

import uuid
from collections.abc import Iterator

import pytest
import yaml
from kubectl import CHART, run

EXTERNAL = "etcd.bundled=false,etcd.endpoints={etcd.example:2379}"
COMBINATIONS = {
    "defaults": "",
    "namespaced": "namespaces={NAMESPACE},aggregateRoles=false",
    "three members of etcd": "etcd.replicas=3,etcd.storage.storageClassName=fast",
    "etcd without passwords": "etcd.auth.enabled=false",
    "etcd over TLS": "etcd.tls.enabled=true,etcd.replicas=3",
    "etcd over TLS, signed by others": "etcd.tls.enabled=true,etcd.tls.existingSecret=etcd-tls",
    "pods of jobs over TLS": "jobs.tls.enabled=true",
    "external etcd over TLS": f"{EXTERNAL},etcd.auth.enabled=false,etcd.tls.enabled=true,etcd.tls.existingSecret=ca",
    "external etcd": f"{EXTERNAL},etcd.auth.existingSecret=etcd-root",
    "external etcd without passwords": f"{EXTERNAL},etcd.auth.enabled=false",
    "one replica": "operator.replicas=1,networkPolicies.enabled=false",
    "crd from elsewhere": "crds.install=false,fullnameOverride=rl",
    "placed": "operator.nodeSelector.a=b,operator.tolerations[0].operator=Exists,operator.priorityClassName=high,"
    "images.pullSecrets={registry},commonLabels.team=a,operator.env[0].name=A,operator.env[0].value=b",
    "pinned": f"images.operator.digest=sha256:{'a' * 64},etcd.image.digest=sha256:{'b' * 64}",
    "pod monitors": "features.podMonitors=Auto,features.gangScheduling=Never",
    "dashboards": "monitoring.dashboards.enabled=true,monitoring.dashboards.annotations.grafana_folder=Tandem",
}


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """A namespace whose pods must pass the restricted profile."""
    name = f"chart-{uuid.uuid4().hex[:8]}"
    run("kubectl", "create", "namespace", name)
    labels = [f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")]
    run("kubectl", "label", "namespace", name, *labels)
    yield name
    run("kubectl", "delete", "namespace", name, "--wait=false")


def test_helm_lint_has_no_complaint() -> None:
    assert "0 chart(s) failed" in run("helm", "lint", "--strict", str(CHART))


@pytest.mark.parametrize("values", COMBINATIONS.values(), ids=COMBINATIONS)
def test_a_documented_combination_is_accepted(namespace: str, values: str) -> None:
    values = values.replace("NAMESPACE", namespace)
    rendered = run("helm", "template", "t", str(CHART), "--namespace", namespace, "--set", values)
    dry_run = ("kubectl", "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict")
    answer = run(*dry_run, "-f", "-", stdin=rendered)
    assert "Warning" not in answer, "the restricted profile warns"


def test_monitors_are_rendered_for_the_operator_and_the_bundled_etcd(namespace: str) -> None:
    values = "monitoring.serviceMonitor.enabled=true,monitoring.serviceMonitor.labels.release=prometheus"
    rendered = run("helm", "template", "t", str(CHART), "--namespace", namespace, "--set", values)
    assert rendered.count("kind: ServiceMonitor") == 2


def test_alerts_and_dashboards_are_rendered_as_they_are_in_the_chart() -> None:
    values = (
        "monitoring.rules.enabled=true,monitoring.rules.labels.release=prometheus,monitoring.dashboards.enabled=true"
    )
    rendered = list(yaml.safe_load_all(run("helm", "template", "t", str(CHART), "--set", values)))
    (rule,) = [made for made in rendered if made["kind"] == "PrometheusRule"]
    assert rule["spec"] == yaml.safe_load((CHART / "rules" / "tandem.yaml").read_text())
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    dashboards = [made for made in rendered if made["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]
    shipped = {path.name: path.read_text() for path in (CHART / "dashboards").glob("*.json")}
    assert {name: text for made in dashboards for name, text in made["data"].items()} == shipped
