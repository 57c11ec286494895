# SPDX-License-Identifier: Apache-2.0
"""TLS between a job's pods: who gets the key, who is told what, and that both pods of a job always agree."""

import base64
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID
from operator_fixture import manifest, platform, rljob

from tandem_api.environment import Secrets
from tandem_api.rljob import RLJobObject
from tandem_operator.certificates import draw
from tandem_operator.cluster import Cluster, Kind, Refused
from tandem_operator.objects import Objects
from tandem_operator.observations import PLAN_ANNOTATION
from tandem_operator.observed import Workload, workload
from tandem_operator.plan import Certificate, Manifest, Suspension, plan
from tandem_operator.plan.tls import server_names

CERTIFICATE = Certificate("CERTIFICATE OF THE TEST", "KEY OF THE TEST")
PODS = ("orchestrator", "hybrid")


def jobs(planned: list[Manifest]) -> dict[str, Manifest]:
    return {found["metadata"]["name"]: found for found in planned if found["kind"] == "Job"}


def pods(job: RLJobObject, certificate: Certificate | None = CERTIFICATE) -> dict[str, Manifest]:
    planned = jobs(plan(job, platform(), Secrets("t0ken"), certificate=certificate))
    return {name: planned[f"sums-{name}"]["spec"]["template"]["spec"] for name in PODS}


def containers(pod: Manifest) -> dict[str, Manifest]:
    return {found["name"]: found for found in [*pod.get("initContainers", ()), *pod["containers"]]}


def told(container: Manifest) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in container["env"]}


def mounted(pod: Manifest, container: Manifest) -> dict[str, set[str]]:
    """The files of each Secret that a container sees, by the Secret's name; those it is not limited to count as all."""
    volumes = {volume["name"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
    return {
        volumes[mount["name"]]["secretName"]: {item["key"] for item in volumes[mount["name"]].get("items", ())} or {"*"}
        for mount in container["volumeMounts"]
        if mount["name"] in volumes
    }


def test_the_key_is_in_one_secret_which_only_the_orchestrator_mounts_whole() -> None:
    planned = plan(rljob(), platform(), Secrets("t0ken"), certificate=CERTIFICATE)
    holders = [found for found in planned if CERTIFICATE.key in str(found)]
    (secret,) = holders
    assert (secret["kind"], secret["type"]) == ("Secret", "kubernetes.io/tls")
    name = secret["metadata"]["name"]
    seen = {
        container: mounted(pod, content).get(name)
        for pod in pods(rljob()).values()
        for container, content in containers(pod).items()
    }
    assert seen == {"orchestrator": {"*"}, "engine": {"tls.crt"}, "trainer": {"tls.crt"}}
    assert "KEY" not in repr(CERTIFICATE)


def test_everyone_is_told_to_speak_tls_and_the_kubelet_too() -> None:
    made = pods(rljob())
    for pod in made.values():
        for container in containers(pod).values():
            assert told(container)["TANDEM_ORCHESTRATOR_URL"] == "https://sums-orchestrator:8080"
            (mount,) = [found for found in container["volumeMounts"] if found["name"] == "tandem-tls"]
            assert told(container)["TANDEM_TLS_DIR"] == mount["mountPath"]
    served = containers(made["orchestrator"])["orchestrator"]
    for probe in ("startupProbe", "readinessProbe"):
        assert served[probe]["httpGet"] == {"path": "/healthz", "port": 8080, "scheme": "HTTPS"}
        assert served[probe]["failureThreshold"] > 0


def test_a_users_variable_of_that_name_does_not_bring_plain_http_back() -> None:
    own = {"env": [{"name": "TANDEM_ORCHESTRATOR_URL", "value": "http://elsewhere:1"}]}
    trainer = containers(pods(rljob(trainer=own))["hybrid"])["trainer"]
    assert told(trainer)["TANDEM_ORCHESTRATOR_URL"] == "https://sums-orchestrator:8080"


def test_without_a_certificate_nothing_speaks_of_tls() -> None:
    planned = plan(rljob(), platform(), Secrets("t0ken"))
    assert "tls" not in str(planned).lower()
    assert "http://sums-orchestrator:8080" in str(planned)


def test_a_certificate_is_for_the_names_of_the_service_signs_nothing_and_never_ends() -> None:
    drawn = draw(server_names(rljob()))
    found = x509.load_pem_x509_certificate(drawn.certificate.encode())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [
        "sums-orchestrator",
        "sums-orchestrator.team",
        "sums-orchestrator.team.svc",
    ]
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    use = found.extensions.get_extension_for_oid(ExtensionOID.KEY_USAGE).value
    assert not cast(x509.KeyUsage, use).key_cert_sign
    assert found.not_valid_before_utc < datetime.now(UTC)
    assert found.not_valid_after_utc.year == 9999
    assert draw(("a",)).key != draw(("a",)).key


class ApiServer:
    """Keeps objects, and refuses to change a Job's template, as Kubernetes does."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Manifest] = {}

    async def create(self, manifest: Manifest) -> bool:
        key = manifest["kind"], manifest["metadata"]["name"]
        if key in self.objects:
            return False
        encoded = {
            name: base64.b64encode(value.encode()).decode() for name, value in manifest.get("stringData", {}).items()
        }
        self.objects[key] = manifest | {"data": encoded}
        return True

    async def apply(self, manifest: Manifest) -> None:
        key = manifest["kind"], manifest["metadata"]["name"]
        if manifest["kind"] == "Job" and key in self.objects:
            assert self.objects[key]["spec"]["template"] == manifest["spec"]["template"], "field is immutable"
        self.objects[key] = manifest

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        return self.objects.get((kind.name, name))

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Manifest) -> None:
        assert set(patch) <= {"spec", "metadata"}

    async def delete(self, kind: Kind, namespace: str, name: str) -> None:
        del self.objects[kind.name, name]

    @property
    def workloads(self) -> tuple[Workload, ...]:
        return tuple(workload(found, PLAN_ANNOTATION) for (kind, _), found in self.objects.items() if kind == "Job")

    def speak_tls(self) -> dict[str, bool]:
        """Which of the job's pods do."""
        return {
            name: "https://" in str(found["spec"]["template"])
            for (kind, name), found in self.objects.items()
            if kind == "Job"
        }


BOTH = {"sums-orchestrator": True, "sums-hybrid": True}
NEITHER = dict.fromkeys(BOTH, False)


def operator(server: ApiServer, tls: bool) -> Objects:
    """An operator that has just started."""
    return Objects(cast(Cluster, server), None, replace(platform(), tls=tls))


async def ensure(objects: Objects, server: ApiServer, **options: Any) -> None:
    await objects.ensure(rljob(), Suspension(), server.workloads, False, **options)


@pytest.mark.parametrize(("tls", "expected"), [(True, BOTH), (False, NEITHER)])
async def test_new_jobs_do_as_the_chart_says(tls: bool, expected: dict[str, bool]) -> None:
    server = ApiServer()
    await ensure(operator(server, tls), server)
    assert server.speak_tls() == expected
    assert (("Secret", "sums-api-tls") in server.objects) == tls


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("lost", ["hybrid", "orchestrator"])
async def test_a_job_keeps_its_choice_when_the_chart_changes_and_a_workload_is_made_anew(
    before: bool, lost: str
) -> None:
    server = ApiServer()
    await ensure(operator(server, before), server)
    await server.delete(Kind("batch/v1", "Job"), "team", f"sums-{lost}")
    await ensure(operator(server, not before), server)
    assert server.speak_tls() == (BOTH if before else NEITHER)


async def test_a_certificate_is_drawn_once() -> None:
    server = ApiServer()
    objects = operator(server, tls=True)
    await ensure(objects, server)
    first = server.objects["Secret", "sums-api-tls"]["data"]
    await ensure(objects, server, rebuild=True)
    assert server.objects["Secret", "sums-api-tls"]["data"] == first
    assert b"PRIVATE KEY" in base64.b64decode(first["tls.key"])


async def test_a_secret_that_belongs_to_something_else_is_not_taken_for_the_jobs() -> None:
    server = ApiServer()
    foreign = manifest("other")
    server.objects["Secret", "sums-api-tls"] = {**foreign, "kind": "Secret", "metadata": {"name": "sums-api-tls"}}
    with pytest.raises(Refused, match="Secret sums-api-tls exists and belongs to something else; delete it"):
        await ensure(operator(server, tls=True), server)
    assert server.speak_tls() == {}


async def test_a_job_that_stands_is_left_alone_when_the_chart_is_told_otherwise() -> None:
    server = ApiServer()
    await ensure(operator(server, tls=False), server)
    made = dict(server.objects)
    await ensure(operator(server, tls=True), server)
    assert server.objects == made
