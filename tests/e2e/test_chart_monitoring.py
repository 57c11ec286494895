# SPDX-License-Identifier: Apache-2.0
"""Monitors, rules and dashboards are accepted by a real API server that has the Prometheus operator's definitions."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kubectl import CHART, kubectl, run
from monitoring_crds import definitions
from operator_fixture import platform, rljob
from waiting import DEADLINE, until

from tandem_api.environment import Secrets
from tandem_operator.plan import plan

EVERYTHING = {
    "features": {"podMonitors": "Auto"},
    "monitoring": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "interval": "15s"},
        "rules": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Tandem"}},
        "traces": {"endpoint": "http://collector.monitoring:4318"},
    },
}
DRY_RUN = ("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-")


def established(name: str) -> bool:
    """Whether objects of the definition can be sent; its status is empty at first, which `kubectl wait` refuses."""
    status = json.loads(kubectl("get", "crd", name, "-o", "json")).get("status", {})
    met = {condition["type"] for condition in status.get("conditions") or () if condition["status"] == "True"}
    return "Established" in met


@pytest.fixture(scope="module", autouse=True)
def monitoring() -> Iterator[None]:
    """The definitions, for as long as this module runs; those that the cluster has already stay as they are."""
    present = set(kubectl("get", "crds", "-o", "name").split())
    added = {
        name: path
        for name, path in definitions().items()
        if f"customresourcedefinition.apiextensions.k8s.io/{name}" not in present
    }
    try:
        for name, path in added.items():
            kubectl("create", "-f", str(path))
            until(lambda name=name: established(name), DEADLINE, f"{name} established")
        yield
    finally:
        for name in added:
            kubectl("delete", "crd", name, "--ignore-not-found")


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    name = f"monitoring-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def rendered(namespace: str) -> list[dict[str, Any]]:
    values = json.dumps(EVERYTHING)
    text = run("helm", "template", "t", str(CHART), "--namespace", namespace, "--values", "-", stdin=values)
    return [made for made in yaml.safe_load_all(text) if made]


def test_the_chart_with_all_monitoring_is_accepted(namespace: str, rendered: list[dict[str, Any]]) -> None:
    kinds = [made["kind"] for made in rendered]
    assert (kinds.count("ServiceMonitor"), kinds.count("PrometheusRule")) == (2, 1)
    answer = kubectl(*DRY_RUN, stdin=yaml.safe_dump_all(rendered))
    for kind in ("servicemonitor", "prometheusrule"):
        assert f"{kind}.monitoring.coreos.com/" in answer
    assert sum("grafana_dashboard" in made["metadata"].get("labels", {}) for made in rendered) == 3


def test_service_monitors_select_services_and_ports_that_the_chart_makes(rendered: list[dict[str, Any]]) -> None:
    services = [made for made in rendered if made["kind"] == "Service"]
    for monitor in (made for made in rendered if made["kind"] == "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        selected = [service for service in services if wanted <= service["metadata"]["labels"].items()]
        assert selected
        for endpoint in monitor["spec"]["endpoints"]:
            assert any(port["name"] == endpoint["port"] for service in selected for port in service["spec"]["ports"])


def test_a_jobs_pod_monitor_is_accepted_and_selects_pods_that_serve_metrics(namespace: str) -> None:
    objects = plan(rljob(namespace=namespace), platform(pod_monitor=True), Secrets("token"))
    (monitor,) = [made for made in objects if made["kind"] == "PodMonitor"]
    assert "podmonitor.monitoring.coreos.com/" in kubectl(*DRY_RUN, stdin=yaml.safe_dump(monitor))
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    templates = [made["spec"]["template"] for made in objects if made["kind"] == "Job"]
    for template in templates:
        assert wanted <= template["metadata"]["labels"].items()
        containers = [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]
        ports = [port["name"] for container in containers for port in container.get("ports", ())]
        assert ports.count(monitor["spec"]["podMetricsEndpoints"][0]["port"]) == 1


def test_the_definitions_do_check(rendered: list[dict[str, Any]]) -> None:
    (rule,) = [made for made in rendered if made["kind"] == "PrometheusRule"]
    rule = json.loads(json.dumps(rule))
    rule["spec"]["groups"][0]["rules"][0]["for"] = "a while"
    with pytest.raises(AssertionError, match=r"rules\[0\]\.for"):
        kubectl(*DRY_RUN, stdin=yaml.safe_dump(rule))
