# SPDX-License-Identifier: Apache-2.0
"""Volumes that outlive pods: the replay buffer, and checkpoints where the user brings no claim."""

from tandem_api.labels import HYBRID, ORCHESTRATOR
from tandem_api.rljob import RLJobObject
from tandem_operator.plan import identity
from tandem_operator.plan.identity import Manifest
from tandem_operator.plan.platform import Platform


def checkpoint_claim(job: RLJobObject) -> str:
    """Name of the claim that hybrid pods mount at the checkpoint directory."""
    volume = job.spec.checkpoint.volume
    return volume.claim_name if volume else identity.checkpoints_name(job.metadata.name)


def buffer_volume(job: RLJobObject, platform: Platform) -> Manifest:
    """The orchestrator's claim. ReadWriteOncePod: a second orchestrator cannot even mount the buffer."""
    settings = job.spec.orchestrator
    storage_class = settings.storage_class_name or platform.storage_class_name
    name = identity.orchestrator_name(job.metadata.name)
    return _claim(job, name, ORCHESTRATOR, "ReadWriteOncePod", settings.storage, storage_class)


def checkpoint_volume(job: RLJobObject, platform: Platform) -> Manifest:
    """The claim that Tandem makes; several hybrid pods need a class that more than one node can write to."""
    mode = "ReadWriteMany" if job.spec.hybrid.replicas > 1 else "ReadWriteOnce"
    return _claim(job, checkpoint_claim(job), HYBRID, mode, job.spec.checkpoint.size, platform.storage_class_name)


def _claim(
    job: RLJobObject, name: str, component: str, access_mode: str, size: int, storage_class: str | None
) -> Manifest:
    spec: Manifest = {"accessModes": [access_mode], "resources": {"requests": {"storage": str(size)}}}
    if storage_class is not None:
        spec["storageClassName"] = storage_class
    return identity.owned(job, "v1", "PersistentVolumeClaim", name, component, spec=spec)
