# SPDX-License-Identifier: Apache-2.0
"""What the pods of both workloads have in common: the restricted profile, the environment, the mounted job."""

from collections.abc import Iterable
from typing import Any

from tandem_api import environment as env
from tandem_api.rljob import RLJobObject
from tandem_operator.plan import identity
from tandem_operator.plan.identity import Manifest
from tandem_operator.plan.platform import Platform

JOB_DIR = "/etc/tandem"
SECRETS_DIR = "/var/run/secrets/tandem"
RUN_DIR = "/run/tandem"
STATE_DIR = "/var/lib/tandem"
CHECKPOINT_DIR = "/checkpoints"

# Kubernetes would give up after this many failures; the operator keeps the budget itself (status.restarts).
UNLIMITED_RETRIES = 2**31 - 1


def pod_template(job: RLJobObject, platform: Platform, component: str, **spec: Any) -> Manifest:
    """A pod template that passes the restricted Pod Security Standard; ``spec`` adds what is special to it."""
    pull_secrets = [{"name": name} for name in platform.images.pull_secrets]
    common = {
        "restartPolicy": "OnFailure",
        "serviceAccountName": job.metadata.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": platform.termination_grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": platform.user_id,
            "runAsGroup": platform.user_id,
            "fsGroup": platform.user_id,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"imagePullSecrets": pull_secrets} if pull_secrets else {}),
    }
    return {"metadata": {"labels": identity.labels(job, component)}, "spec": common | spec}


def container(
    name: str, image: str, module: str, platform: Platform, environment: Iterable[Manifest], **content: Any
) -> Manifest:
    """A container that runs a Python module."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": platform.images.pull_policy,
        "command": ["python", "-m", module],
        "env": list(environment),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **content,
    }


def environment(job: RLJobObject, platform: Platform, **added: str) -> list[Manifest]:
    """Variables that every container has (tandem_api.environment), and ``added`` ones."""
    values = {
        env.JOB_FILE: f"{JOB_DIR}/job.json",
        env.SECRETS_DIR: SECRETS_DIR,
        env.ETCD_ENDPOINTS: ",".join(platform.etcd.endpoints),
        env.ORCHESTRATOR_URL: f"http://{identity.orchestrator_name(job.metadata.name)}:{env.ORCHESTRATOR_PORT}",
        "HOME": "/tmp",  # noqa: S108 - each container has an emptyDir of its own there
        **added,
    }
    fields = {env.POD_NAME: "metadata.name", env.POD_UID: "metadata.uid", env.POD_IP: "status.podIP"}
    return [{"name": name, "value": value} for name, value in values.items()] + [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()
    ]


def with_user_environment(variables: list[Manifest], added: Iterable[Manifest]) -> list[Manifest]:
    """A user's variables replace generated ones of the same name."""
    by_name = {variable["name"]: variable for variable in variables}
    return list((by_name | {variable["name"]: variable for variable in added}).values())


def job_volumes(job: RLJobObject) -> list[Manifest]:
    """The job file and the job's secrets."""
    name = job.metadata.name
    return [
        {"name": "job", "configMap": {"name": identity.spec_name(name)}},
        {"name": "secrets", "secret": {"secretName": identity.secrets_name(name), "defaultMode": 0o440}},
    ]


def job_mounts() -> list[Manifest]:
    return [
        {"name": "job", "mountPath": JOB_DIR, "readOnly": True},
        {"name": "secrets", "mountPath": SECRETS_DIR, "readOnly": True},
    ]


def http_probe(port: int, period: int, failures: int) -> Manifest:
    """A probe of ``/healthz``; ``period`` in seconds."""
    return {
        "httpGet": {"path": "/healthz", "port": port},
        "periodSeconds": period,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }
