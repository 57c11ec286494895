# SPDX-License-Identifier: Apache-2.0
"""The orchestrator: a Job of one CPU pod."""

from tandem_api import environment as env
from tandem_api.labels import ORCHESTRATOR
from tandem_api.rljob import RLJobObject
from tandem_operator.plan import identity, pods, tls
from tandem_operator.plan.identity import Manifest
from tandem_operator.plan.overlay import overlay
from tandem_operator.plan.platform import Platform


def orchestrator_job(job: RLJobObject, platform: Platform, suspended: bool, secured: bool) -> Manifest:
    """``suspended`` only while the job has not begun: a suspended run keeps its orchestrator, which costs no device."""
    spec = {
        "completions": 1,
        "parallelism": 1,
        "backoffLimit": pods.UNLIMITED_RETRIES,
        "podReplacementPolicy": "Failed",
        "suspend": suspended,
        "template": overlay(_template(job, platform, secured), job.spec.orchestrator.template),
    }
    name = identity.orchestrator_name(job.metadata.name)
    return identity.owned(job, "batch/v1", "Job", name, ORCHESTRATOR, spec=spec)


def _template(job: RLJobObject, platform: Platform, secured: bool) -> Manifest:
    claim = identity.orchestrator_name(job.metadata.name)
    volumes = [
        *pods.job_volumes(job),
        {"name": "state", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "tmp", "emptyDir": {}},
    ]
    template = pods.pod_template(job, platform, ORCHESTRATOR, containers=[_container(job, platform)], volumes=volumes)
    return overlay(template, tls.served(job)) if secured else template


def _container(job: RLJobObject, platform: Platform) -> Manifest:
    settings = job.spec.orchestrator
    collector = {env.COLLECTOR: platform.trace_collector} if platform.trace_collector else {}
    variables = pods.environment(job, platform, **{env.STATE_DIR: pods.STATE_DIR}, **collector)
    return pods.container(
        "orchestrator",
        settings.image or platform.images.orchestrator,
        "tandem_orchestrator",
        platform,
        pods.with_user_environment(variables, settings.env),
        ports=[
            {"name": "http", "containerPort": env.ORCHESTRATOR_PORT},
            {"name": "metrics", "containerPort": env.METRICS_PORT},
        ],
        resources=dict(settings.resources or platform.orchestrator_resources),
        startupProbe=pods.http_probe(env.ORCHESTRATOR_PORT, period=1, failures=300),
        readinessProbe=pods.http_probe(env.ORCHESTRATOR_PORT, period=5, failures=3),
        volumeMounts=[
            *pods.job_mounts(),
            {"name": "state", "mountPath": pods.STATE_DIR},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    )
