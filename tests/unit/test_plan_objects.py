# SPDX-License-Identifier: Apache-2.0
"""The other objects of a job, and what ties them together."""

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from operator_fixture import UID, platform, rljob

from tandem_api.environment import Job, Secrets
from tandem_api.rljob import MAX_NAME, RLJobObject
from tandem_operator.plan import Gang, Manifest, plan
from tandem_operator.plan.overlay import overlay
from tandem_operator.plan.resources import amount

SECRETS = Secrets("t0ken", "tandem-user", "passw0rd")


def objects(job: RLJobObject, **capabilities: Any) -> dict[tuple[str, str], Manifest]:
    return {(found["kind"], found["metadata"]["name"]): found for found in plan(job, platform(**capabilities), SECRETS)}


def full_job() -> RLJobObject:
    return rljob(hybrid={"replicas": 2, "accelerators": {"count": 2}})


def test_every_object_is_owned_by_the_job_and_labelled_with_it() -> None:
    for manifest in objects(full_job(), gang=Gang.KUBERNETES, pod_monitor=True).values():
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == ("RLJob", "sums", UID, True)
        assert manifest["metadata"]["namespace"] == "team"
        assert manifest["metadata"]["labels"]["tandem-rl.dev/job"] == "sums"
        assert manifest["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "tandem"


def test_what_pods_mount_and_are_selected_by_comes_before_the_pods() -> None:
    kinds = [manifest["kind"] for manifest in plan(full_job(), platform(gang=Gang.KUBERNETES), SECRETS)]
    assert kinds[-2:] == ["Job", "Job"]
    assert "Job" not in kinds[:-2]


def test_no_name_of_the_longest_job_overflows_63_characters() -> None:
    job = full_job()
    longest = job.model_copy(update={"metadata": job.metadata.model_copy(update={"name": "a" * MAX_NAME})})
    for kind, name in objects(longest, gang=Gang.KUBERNETES, pod_monitor=True):
        assert len(name) <= 63, kind
    assert len(f"{'a' * MAX_NAME}-hybrid-4095") <= 63


def test_the_job_file_is_what_the_processes_read(tmp_path: Any) -> None:
    job = full_job()
    file = tmp_path / "job.json"
    file.write_text(objects(job)["ConfigMap", "sums-spec"]["data"]["job.json"])
    assert Job.read(file) == Job("team", "sums", UID, job.spec)


def test_secrets_stand_in_the_secret_and_nowhere_else() -> None:
    found = objects(full_job())
    secret = found.pop(("Secret", "sums-secrets"))
    assert secret["stringData"] == {"token": "t0ken", "etcd-username": "tandem-user", "etcd-password": "passw0rd"}
    rest = json.dumps(list(found.values()))
    assert "t0ken" not in rest
    assert "passw0rd" not in rest


@pytest.mark.parametrize(("replicas", "mode"), [(1, "ReadWriteOnce"), (2, "ReadWriteMany")])
def test_the_checkpoint_claim_can_be_written_from_as_many_nodes_as_there_are_pods(replicas: int, mode: str) -> None:
    claim = objects(rljob(hybrid={"replicas": replicas}))["PersistentVolumeClaim", "sums-checkpoints"]
    assert claim["spec"]["accessModes"] == [mode]
    assert claim["spec"]["resources"]["requests"]["storage"] == str(10 * 2**30)


def test_a_users_checkpoint_claim_is_mounted_and_none_is_made() -> None:
    found = objects(rljob(checkpoint={"volume": {"claimName": "mine"}}))
    assert ("PersistentVolumeClaim", "sums-checkpoints") not in found
    volumes = found["Job", "sums-hybrid"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "checkpoints", "persistentVolumeClaim": {"claimName": "mine"}} in volumes


def test_only_one_pod_can_ever_mount_the_replay_buffer() -> None:
    claim = objects(rljob())["PersistentVolumeClaim", "sums-orchestrator"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]


def test_a_drain_takes_one_hybrid_pod_at_a_time() -> None:
    assert objects(full_job())["PodDisruptionBudget", "sums-hybrid"]["spec"]["minAvailable"] == 1


def test_one_pod_needs_neither_a_budget_nor_a_group() -> None:
    kinds = {kind for kind, _ in objects(rljob(), gang=Gang.KUBERNETES)}
    assert kinds.isdisjoint({"PodDisruptionBudget", "PodGroup"})


def test_a_queue_sees_the_hybrid_job_and_its_priority_and_nothing_else() -> None:
    labels = {"kueue.x-k8s.io/queue-name": "team-queue", "kueue.x-k8s.io/priority-class": "high"}
    found = objects(rljob(labels=labels))
    assert labels.items() <= found["Job", "sums-hybrid"]["metadata"]["labels"].items()
    labelled = [key for key, manifest in found.items() if "kueue.x-k8s.io/queue-name" in manifest["metadata"]["labels"]]
    assert labelled == [("Job", "sums-hybrid")]


def test_only_hybrid_pods_of_the_same_job_reach_the_orchestrator() -> None:
    policy = objects(full_job())["NetworkPolicy", "sums-orchestrator"]["spec"]
    api = next(rule for rule in policy["ingress"] if rule["ports"][0]["port"] == 8080)
    (peer,) = api["from"]
    assert peer == {
        "podSelector": {"matchLabels": {"tandem-rl.dev/job": "sums", "app.kubernetes.io/component": "hybrid"}}
    }
    assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_pods_may_leave_for_etcd_and_judges_and_the_hub_only_where_the_job_needs_them() -> None:
    def ports(job: RLJobObject, component: str) -> set[int]:
        policy = objects(job)["NetworkPolicy", f"sums-{component}"]["spec"]
        return {port["port"] for rule in policy["egress"] for port in rule.get("ports", ())}

    judged = rljob(rewards=[{"name": "j", "judge": {"url": "http://judge:8000/v1", "model": "m"}}])
    hub = rljob(model={"source": {"random": None, "hf": {"path": "Qwen/Qwen3-8B"}}})
    local = rljob(model={"source": {"random": None, "hf": {"path": "/models/qwen"}}})
    assert ports(judged, "orchestrator") == {53, 2379, 8000}
    assert ports(judged, "hybrid") == {53, 2379, 8080}
    assert ports(hub, "hybrid") == {53, 2379, 8080, 443}
    assert ports(local, "hybrid") == {53, 2379, 8080}


def test_the_orchestrator_reaches_the_collector_that_the_cluster_or_the_job_names() -> None:
    def seen(job: RLJobObject, **changes: Any) -> tuple[set[int], str | None]:
        place = replace(platform(), **changes)
        made = {(found["kind"], found["metadata"]["name"]): found for found in plan(job, place, SECRETS)}
        egress = made["NetworkPolicy", "sums-orchestrator"]["spec"]["egress"]
        (container,) = made["Job", "sums-orchestrator"]["spec"]["template"]["spec"]["containers"]
        told = {variable["name"]: variable.get("value") for variable in container["env"]}
        ports = {port["port"] for rule in egress for port in rule["ports"]}
        return ports - {53, 2379}, told.get("OTEL_EXPORTER_OTLP_ENDPOINT")

    own = rljob(orchestrator={"env": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "https://traces.example.com"}]})
    assert seen(rljob()) == (set(), None)
    assert seen(rljob(), trace_collector="http://collector:4318") == ({4318}, "http://collector:4318")
    assert seen(own, trace_collector="http://collector:4318") == ({443}, "https://traces.example.com")


def test_planning_twice_gives_the_same() -> None:
    assert plan(full_job(), platform(), SECRETS) == plan(full_job(), platform(), SECRETS)


NAMED = st.lists(
    st.builds(lambda name, image: {"name": name, "image": image}, st.sampled_from("abcd"), st.integers(0, 3)),
    unique_by=lambda item: item["name"],
)


@given(NAMED, NAMED)
def test_containers_merge_by_name_and_keep_their_order(base: list[Any], patch: list[Any]) -> None:
    result = overlay({"spec": {"containers": base}}, {"spec": {"containers": patch}})["spec"]["containers"]
    names = [item["name"] for item in result]
    assert names == [item["name"] for item in base] + [
        item["name"] for item in patch if item["name"] not in {other["name"] for other in base}
    ]
    images = {item["name"]: item["image"] for item in base} | {item["name"]: item["image"] for item in patch}
    assert {item["name"]: item["image"] for item in result} == images


def test_an_overlay_changes_neither_of_its_arguments() -> None:
    base = {"spec": {"containers": [{"name": "a", "env": [{"name": "x", "value": "1"}]}]}}
    patch = {"spec": {"containers": [{"name": "a", "env": [{"name": "x", "value": "2"}]}]}}
    before = json.dumps([base, patch])
    overlay(base, patch)
    assert json.dumps([base, patch]) == before


@pytest.mark.parametrize(
    ("quantity", "number"),
    [("500m", "0.5"), ("2", "2"), (2, "2"), ("1Gi", str(2**30)), ("1.5G", "1500000000"), (0.5, "0.5")],
)
def test_quantities_compare_as_numbers(quantity: str | float, number: str) -> None:
    assert amount(quantity) == Decimal(number)
