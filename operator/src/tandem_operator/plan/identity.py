# SPDX-License-Identifier: Apache-2.0
"""Names, labels and owner references: what ties the objects of a job together."""

from typing import Any

from tandem_api import API_VERSION, KIND
from tandem_api.labels import COMPONENT_LABEL, JOB_LABEL
from tandem_api.rljob import RLJobObject

type Manifest = dict[str, Any]

MANAGER = "tandem"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"


def orchestrator_name(job: str) -> str:
    return f"{job}-orchestrator"


def hybrid_name(job: str) -> str:
    return f"{job}-hybrid"


def secrets_name(job: str) -> str:
    return f"{job}-secrets"


def tls_name(job: str) -> str:
    return f"{job}-api-tls"


def spec_name(job: str) -> str:
    return f"{job}-spec"


def accelerators_name(job: str) -> str:
    return f"{job}-accelerators"


def checkpoints_name(job: str) -> str:
    return f"{job}-checkpoints"


def queue(job: RLJobObject) -> str | None:
    """The Kueue queue that decides when the hybrid pods may run."""
    return job.metadata.labels.get(QUEUE_LABEL)


def selector(job: RLJobObject, component: str) -> dict[str, str]:
    """Labels that exactly the pods of one component of this job have."""
    return {JOB_LABEL: job.metadata.name, COMPONENT_LABEL: component}


def labels(job: RLJobObject, component: str | None = None) -> dict[str, str]:
    """Labels of every object of a job; with ``component``, of those that belong to one of its two workloads."""
    common = {
        "app.kubernetes.io/name": "rljob",
        "app.kubernetes.io/instance": job.metadata.name,
        "app.kubernetes.io/managed-by": MANAGER,
        "app.kubernetes.io/part-of": "tandem",
        JOB_LABEL: job.metadata.name,
    }
    return common | ({COMPONENT_LABEL: component} if component else {})


def owned(
    job: RLJobObject, api_version: str, kind: str, name: str, component: str | None = None, **content: Any
) -> Manifest:
    """An object that Kubernetes deletes together with its job."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": job.metadata.name,
        "uid": job.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    metadata = {
        "name": name,
        "namespace": job.metadata.namespace,
        "labels": labels(job, component),
        "ownerReferences": [owner],
    }
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}
