# SPDX-License-Identifier: Apache-2.0
"""The hybrid pods: an Indexed Job whose pods hold an engine and a trainer on the same devices."""

from tandem_api import environment as env
from tandem_api.labels import HYBRID
from tandem_api.rljob import RLJobObject
from tandem_operator.plan import accelerators, gang, identity, pods, resources, tls
from tandem_operator.plan.identity import Manifest
from tandem_operator.plan.overlay import overlay
from tandem_operator.plan.platform import Platform
from tandem_operator.plan.storage import checkpoint_claim

ENGINE_PORT = 8081
_START_SECONDS = 240


def hybrid_job(job: RLJobObject, platform: Platform, suspended: bool, secured: bool) -> Manifest:
    """Pod i is Megatron's node i: never two pods of one index (podReplacementPolicy Failed)."""
    replicas = job.spec.hybrid.replicas
    spec = {
        "completionMode": "Indexed",
        "completions": replicas,
        "parallelism": replicas,
        "backoffLimit": pods.UNLIMITED_RETRIES,
        "podReplacementPolicy": "Failed",
        "suspend": suspended,
        "template": overlay(_template(job, platform, secured), job.spec.hybrid.template),
    }
    manifest = identity.owned(job, "batch/v1", "Job", identity.hybrid_name(job.metadata.name), HYBRID, spec=spec)
    if identity.queue(job):
        queueing = (identity.QUEUE_LABEL, identity.QUEUE_PRIORITY_LABEL)
        given = {name: value for name, value in job.metadata.labels.items() if name in queueing}
        manifest["metadata"]["labels"] |= given
    return manifest


def _template(job: RLJobObject, platform: Platform, secured: bool) -> Manifest:
    engine, trainer = _engine(job, platform), _trainer(job, platform)
    spec: Manifest = {
        "subdomain": identity.hybrid_name(job.metadata.name),
        "initContainers": [engine],
        "containers": [trainer],
        "volumes": _volumes(job),
        **accelerators.pod_claims(job),
    }
    if platform.capabilities.pod_level_resources:
        if shared := resources.pod_level(trainer["resources"], engine["resources"]):
            spec["resources"] = shared
        for container in (engine, trainer):
            container["resources"] = resources.without_shared(container["resources"])
    template = pods.pod_template(job, platform, HYBRID, **spec)
    if secured:
        template = overlay(template, tls.believed(job))
    return overlay(template, gang.membership(job, gang.gang_of(job, platform.capabilities.gang)))


def _engine(job: RLJobObject, platform: Platform) -> Manifest:
    settings, devices = job.spec.engine, job.spec.hybrid.accelerators
    variables = _environment(job, platform)
    if devices is not None and not accelerators.claims(devices):
        variables.append({"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"})
    return pods.container(
        "engine",
        settings.image or platform.images.engine_for(accelerated=devices is not None),
        "tandem_sidecar",
        platform,
        pods.with_user_environment(variables, settings.env),
        restartPolicy="Always",
        ports=[
            {"name": "health", "containerPort": ENGINE_PORT},
            {"name": "metrics", "containerPort": env.METRICS_PORT},
        ],
        resources=resources.combined(settings.resources, accelerators.container_claims(devices)),
        startupProbe=pods.http_probe(ENGINE_PORT, period=1, failures=_START_SECONDS),
        readinessProbe=pods.http_probe(ENGINE_PORT, period=5, failures=3),
        volumeMounts=_mounts("engine", checkpoints_read_only=True),
    )


def _trainer(job: RLJobObject, platform: Platform) -> Manifest:
    settings, devices = job.spec.trainer, job.spec.hybrid.accelerators
    return pods.container(
        "trainer",
        settings.image or platform.images.trainer_for(accelerated=devices is not None),
        "tandem_trainer.launch",
        platform,
        pods.with_user_environment(_environment(job, platform), settings.env),
        args=list(settings.extra_args),
        resources=resources.combined(
            settings.resources, accelerators.container_claims(devices), accelerators.extended_resources(devices)
        ),
        volumeMounts=_mounts("trainer", checkpoints_read_only=False),
    )


def _environment(job: RLJobObject, platform: Platform) -> list[Manifest]:
    name = identity.hybrid_name(job.metadata.name)
    return pods.environment(
        job,
        platform,
        **{
            env.RUN_DIR: pods.RUN_DIR,
            env.CHECKPOINT_DIR: pods.CHECKPOINT_DIR,
            env.RENDEZVOUS: f"{name}-0.{name}:{env.RENDEZVOUS_PORT}",
        },
    )


def _volumes(job: RLJobObject) -> list[Manifest]:
    devices = job.spec.hybrid.accelerators
    shared_memory = "1Gi" if devices is None else f"{4 * devices.count}Gi"
    return [
        *pods.job_volumes(job),
        {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory}},
        {"name": "tmp-engine", "emptyDir": {}},
        {"name": "tmp-trainer", "emptyDir": {}},
        {"name": "checkpoints", "persistentVolumeClaim": {"claimName": checkpoint_claim(job)}},
    ]


def _mounts(container: str, checkpoints_read_only: bool) -> list[Manifest]:
    return [
        *pods.job_mounts(),
        {"name": "run", "mountPath": pods.RUN_DIR},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": f"tmp-{container}", "mountPath": "/tmp"},  # noqa: S108
        {"name": "checkpoints", "mountPath": pods.CHECKPOINT_DIR, "readOnly": checkpoints_read_only},
    ]
