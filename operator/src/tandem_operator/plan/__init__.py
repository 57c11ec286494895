# SPDX-License-Identifier: Apache-2.0
"""An RLJob as Kubernetes objects: ``plan`` is a pure function, and local mode runs the pod templates it returns."""

from dataclasses import dataclass

from tandem_api.environment import Secrets
from tandem_api.rljob import RLJobObject
from tandem_operator.plan import accelerators, disruption, gang, monitoring, network, settings, storage, tls
from tandem_operator.plan.hybrid import hybrid_job
from tandem_operator.plan.identity import Manifest
from tandem_operator.plan.orchestrator import orchestrator_job
from tandem_operator.plan.platform import Capabilities, Etcd, Gang, Images, Platform
from tandem_operator.plan.tls import Certificate

__all__ = ["Capabilities", "Certificate", "Etcd", "Gang", "Images", "Manifest", "Platform", "Suspension", "plan"]


@dataclass(frozen=True, slots=True)
class Suspension:
    """Which of a job's two workloads have no pods for now."""

    hybrid: bool = False
    orchestrator: bool = False


def plan(
    job: RLJobObject,
    platform: Platform,
    secrets: Secrets,
    suspension: Suspension = Suspension(),
    certificate: Certificate | None = None,
) -> list[Manifest]:
    """All objects of a job, in the order in which they are to be applied: what pods mount comes before the pods.

    With a ``certificate`` the pods speak TLS with each other wherever it is HTTP that they speak.
    """
    capabilities = platform.capabilities
    devices = job.spec.hybrid.accelerators
    objects = [
        settings.service_account(job),
        settings.secrets(job, secrets, platform.etcd.authorities),
        settings.job_file(job),
        storage.buffer_volume(job, platform),
        network.orchestrator_service(job),
        network.hybrid_service(job),
        network.orchestrator_policy(job, platform),
        network.hybrid_policy(job, platform),
    ]
    if certificate is not None:
        objects.append(tls.secret(job, certificate))
    if job.spec.hybrid.replicas > 1:
        objects.append(disruption.disruption_budget(job))
    if job.spec.checkpoint.volume is None:
        objects.append(storage.checkpoint_volume(job, platform))
    if devices is not None and accelerators.claims(devices):
        objects.append(accelerators.claim_template(job, devices, capabilities.resource_api or "resource.k8s.io/v1"))
    if capabilities.pod_monitor:
        objects.append(monitoring.pod_monitor(job))
    if together := gang.gang_of(job, capabilities.gang):
        objects.append(gang.pod_group(job, together))
    secured = certificate is not None
    objects.append(orchestrator_job(job, platform, suspension.orchestrator, secured))
    objects.append(hybrid_job(job, platform, suspension.hybrid, secured))
    return objects
