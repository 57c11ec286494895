# SPDX-License-Identifier: Apache-2.0
"""The pods that plan() makes: the restricted profile, the shared devices, the environment, the user's overlay."""

from dataclasses import replace
from typing import Any

import pytest
from operator_fixture import platform, rljob

from tandem_api import environment as env
from tandem_api.environment import Secrets
from tandem_api.rljob import RLJobObject
from tandem_operator.plan import Gang, Manifest, Suspension, plan

SECRETS = Secrets("token")


def planned(job: RLJobObject, kind: str, name: str, **capabilities: Any) -> Manifest:
    objects = plan(job, platform(**capabilities), SECRETS)
    return next(found for found in objects if found["kind"] == kind and found["metadata"]["name"] == name)


def pod(job: RLJobObject, component: str = "hybrid", **capabilities: Any) -> Manifest:
    template: Manifest = planned(job, "Job", f"sums-{component}", **capabilities)["spec"]["template"]
    return template


def containers(template: Manifest) -> dict[str, Manifest]:
    spec = template["spec"]
    return {found["name"]: found for found in [*spec.get("initContainers", ()), *spec["containers"]]}


@pytest.mark.parametrize("component", ["hybrid", "orchestrator"])
def test_every_pod_passes_the_restricted_profile(component: str) -> None:
    template = pod(rljob(hybrid={"accelerators": {"count": 2}}), component)
    security = template["spec"]["securityContext"]
    assert security["runAsNonRoot"]
    assert security["runAsUser"] == 65532
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert template["spec"]["automountServiceAccountToken"] is False
    for container in containers(template).values():
        own = container["securityContext"]
        assert own["readOnlyRootFilesystem"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["capabilities"] == {"drop": ["ALL"]}


def test_the_engine_is_a_native_sidecar_that_is_probed_until_its_health_answers() -> None:
    template = pod(rljob())
    (engine,) = template["spec"]["initContainers"]
    assert engine["restartPolicy"] == "Always"
    assert engine["startupProbe"]["httpGet"] == {"path": "/healthz", "port": 8081}
    assert engine["startupProbe"]["periodSeconds"] * engine["startupProbe"]["failureThreshold"] == 240
    assert [container["name"] for container in template["spec"]["containers"]] == ["trainer"]


def test_the_hybrid_job_has_one_pod_an_index_and_leaves_the_retry_budget_to_the_operator() -> None:
    spec = planned(rljob(hybrid={"replicas": 3}), "Job", "sums-hybrid")["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == 3
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["backoffLimit"] == 2**31 - 1
    assert spec["template"]["spec"]["restartPolicy"] == "OnFailure"


def test_both_containers_hold_the_same_claim() -> None:
    job = rljob(hybrid={"accelerators": {"count": 4, "deviceClassName": "gpu.example.com"}})
    template = pod(job)
    (claim,) = template["spec"]["resourceClaims"]
    for container in containers(template).values():
        assert container["resources"]["claims"] == [{"name": claim["name"]}]
    made = planned(job, "ResourceClaimTemplate", claim["resourceClaimTemplateName"])
    (request,) = made["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"] == {"deviceClassName": "gpu.example.com", "allocationMode": "ExactCount", "count": 4}


def test_without_claims_the_trainer_alone_requests_the_devices_and_the_engine_sees_all() -> None:
    job = rljob(hybrid={"accelerators": {"count": 4, "isolation": "Shared"}})
    template = pod(job)
    parts = containers(template)
    assert parts["trainer"]["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert "limits" not in parts["engine"]["resources"]
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"} in parts["engine"]["env"]
    assert "resourceClaims" not in template["spec"]
    assert "ResourceClaimTemplate" not in [found["kind"] for found in plan(job, platform(), SECRETS)]


def test_with_pod_level_resources_the_pod_asks_for_the_larger_of_both_and_containers_for_devices_only() -> None:
    job = rljob(
        hybrid={"accelerators": {"count": 1}},
        trainer={"resources": {"requests": {"cpu": "1500m", "memory": "8Gi"}, "limits": {"memory": "16Gi"}}},
        engine={"resources": {"requests": {"cpu": 2, "memory": "4Gi"}, "limits": {"memory": "20Gi", "cpu": 4}}},
    )
    template = pod(job, pod_level_resources=True)
    assert template["spec"]["resources"] == {
        "requests": {"cpu": 2, "memory": "8Gi"},
        # The trainer's CPU is not limited, so the pod's is not either.
        "limits": {"memory": "20Gi"},
    }
    for container in containers(template).values():
        assert container["resources"] == {"claims": [{"name": "accelerators"}]}


def test_without_pod_level_resources_containers_keep_their_own() -> None:
    wanted = {"requests": {"cpu": 2}}
    template = pod(rljob(engine={"resources": wanted}), pod_level_resources=False)
    assert containers(template)["engine"]["resources"] == wanted
    assert "resources" not in template["spec"]


def test_every_container_is_told_what_the_processes_read() -> None:
    for component, own in (
        ("hybrid", {env.RUN_DIR, env.CHECKPOINT_DIR, env.RENDEZVOUS}),
        ("orchestrator", {env.STATE_DIR}),
    ):
        for container in containers(pod(rljob(), component)).values():
            told = {variable["name"]: variable for variable in container["env"]}
            mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert own <= told.keys()
            assert told[env.POD_IP]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
            for directory in own & {env.RUN_DIR, env.CHECKPOINT_DIR, env.STATE_DIR}:
                assert told[directory]["value"] in mounted
            assert told[env.SECRETS_DIR]["value"] in mounted


def test_trainers_meet_at_pod_zero_by_the_name_that_the_headless_service_gives_it() -> None:
    job = rljob()
    template = pod(job)
    (address,) = [
        variable["value"] for variable in containers(template)["trainer"]["env"] if variable["name"] == env.RENDEZVOUS
    ]
    service = planned(job, "Service", "sums-hybrid")
    assert address == f"sums-hybrid-0.{template['spec']['subdomain']}:29400"
    assert template["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()


def test_only_the_trainer_may_write_checkpoints() -> None:
    for name, read_only in (("engine", True), ("trainer", False)):
        (mount,) = [found for found in containers(pod(rljob()))[name]["volumeMounts"] if found["name"] == "checkpoints"]
        assert mount["readOnly"] is read_only


def test_a_users_template_is_laid_over_the_pod_and_its_containers() -> None:
    overlay = {
        "metadata": {"annotations": {"team": "a"}},
        "spec": {
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"operator": "Exists"}],
            "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
            "containers": [
                {"name": "engine", "volumeMounts": [{"name": "models", "mountPath": "/models"}]},
                {"name": "logger", "image": "logger:1"},
            ],
        },
    }
    template = pod(rljob(hybrid={"template": overlay}))
    plain = pod(rljob())
    parts = containers(template)
    assert template["metadata"]["annotations"] == {"team": "a"}
    assert template["spec"]["nodeSelector"] == {"pool": "gpu"}
    assert {"name": "models", "mountPath": "/models"} in parts["engine"]["volumeMounts"]
    assert len(parts["engine"]["volumeMounts"]) == len(containers(plain)["engine"]["volumeMounts"]) + 1
    assert [found["name"] for found in template["spec"]["initContainers"]] == ["engine"]
    assert [found["name"] for found in template["spec"]["containers"]] == ["trainer", "logger"]
    assert len(template["spec"]["volumes"]) == len(plain["spec"]["volumes"]) + 1


def test_null_in_a_users_template_takes_away_what_was_generated() -> None:
    template = pod(rljob(orchestrator={"template": {"spec": {"securityContext": {"fsGroup": None}}}}), "orchestrator")
    assert "fsGroup" not in template["spec"]["securityContext"]
    assert template["spec"]["securityContext"]["runAsNonRoot"]


def test_a_users_variable_replaces_a_generated_one() -> None:
    template = pod(rljob(engine={"env": [{"name": "HOME", "value": "/scratch"}, {"name": "A", "value": "1"}]}))
    told = [(variable["name"], variable.get("value")) for variable in containers(template)["engine"]["env"]]
    assert told.count(("HOME", "/scratch")) == 1
    assert [name for name, _ in told].count("HOME") == 1
    assert ("A", "1") in told


def test_jobs_without_accelerators_get_the_cpu_images() -> None:
    place = platform()
    place = replace(place, images=replace(place.images, cpu_engine="engine:cpu", cpu_trainer="trainer:cpu"))
    for spec, tag in (({}, "cpu"), ({"accelerators": {"count": 1}}, "1")):
        job = plan(rljob(hybrid=spec), place, SECRETS)[-1]
        images = {name: found["image"] for name, found in containers(job["spec"]["template"]).items()}
        assert images == {"engine": f"engine:{tag}", "trainer": f"trainer:{tag}"}


@pytest.mark.parametrize("gang", list(Gang))
def test_with_a_gang_api_all_pods_belong_to_one_group(gang: Gang) -> None:
    job = rljob(hybrid={"replicas": 4})
    group = planned(job, "PodGroup", "sums-hybrid", gang=gang)
    template = pod(job, gang=gang)
    assert group["apiVersion"] == gang.value
    if gang is Gang.KUBERNETES:
        assert group["spec"]["schedulingPolicy"]["gang"]["minCount"] == 4
        assert template["spec"]["schedulingGroup"] == {"podGroupName": "sums-hybrid"}
    else:
        assert group["spec"]["minMember"] == 4
        assert template["spec"]["schedulerName"] == "volcano"
        assert template["metadata"]["annotations"]["scheduling.k8s.io/group-name"] == "sums-hybrid"


def test_suspension_is_per_workload() -> None:
    objects = plan(rljob(), platform(), SECRETS, Suspension(hybrid=True))
    assert [found["spec"]["suspend"] for found in objects if found["kind"] == "Job"] == [False, True]
