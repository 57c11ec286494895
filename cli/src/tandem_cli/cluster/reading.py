# SPDX-License-Identifier: Apache-2.0
"""Reading what only a job's own containers can reach: their metrics, and the figures on the orchestrator's volume."""

import io
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

from tandem_api.labels import ORCHESTRATOR
from tandem_cli.cluster.errors import ClusterError, Missing
from tandem_cli.cluster.objects import Cluster, Job

_PATIENCE_SECONDS = 120.0
_LOOK_SECONDS = 1.0
_LIFE_SECONDS = 600
_KEPT = (
    *("securityContext", "imagePullSecrets", "nodeSelector", "tolerations", "affinity", "volumes"),
    *("serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "runtimeClassName"),
)


def metrics(cluster: Cluster, job: Job, pod: str, container: str) -> str:
    """What a running container of a job tells Prometheus, in its text format."""
    return _run(cluster, job, pod, container, "metrics").decode()


def figures(cluster: Cluster, job: Job) -> dict[str, bytes]:
    """``metrics.jsonl`` and ``timeline.jsonl`` by name, as far as they are there.

    They come from the orchestrator while it runs; of a job that has ended, from its volume, which a pod of a few
    seconds' life mounts.
    """
    running = next((pod.name for pod in cluster.pods(job) if pod.runs(ORCHESTRATOR)), None)
    if running is not None:
        return _unpacked(_run(cluster, job, running, ORCHESTRATOR, "files"))
    with reader(cluster, job) as pod:
        return _unpacked(_run(cluster, job, pod, ORCHESTRATOR, "files"))


def _run(cluster: Cluster, job: Job, pod: str, container: str, what: str) -> bytes:
    source = (resources.files("tandem_cli.cluster") / "in_pod.py").read_text(encoding="utf-8")
    return cluster.connection.execute(job.namespace, pod, container, ("python", "-I", "-S", "-c", source, what))


def _unpacked(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as files:
        members = [(entry.name, files.extractfile(entry)) for entry in files]
        return {name: file.read() for name, file in members if file is not None}


@contextmanager
def reader(cluster: Cluster, job: Job) -> Iterator[str]:
    """A pod that mounts the volume of an orchestrator that has ended, to read; gone when the block is left."""
    try:
        workload = cluster.workload(job.namespace, f"{job.name}-orchestrator")
    except Missing:
        raise ClusterError(f"{job.name} has no orchestrator yet, so there are no figures to report") from None
    name = cluster.create_pod(reader_pod(job, workload))
    try:
        _await(cluster, job.namespace, name)
        yield name
    finally:
        cluster.delete_pod(job.namespace, name)


def reader_pod(job: Job, workload: dict[str, Any]) -> dict[str, Any]:
    """The orchestrator's pod with another command: the same image, security profile and place, and its volume to
    read. It has none of the job's labels, so no Service, policy or operator takes it for one of the job's pods."""
    template = workload["spec"]["template"]["spec"]
    original = next(one for one in template["containers"] if one["name"] == ORCHESTRATOR)
    container = {
        "name": ORCHESTRATOR,
        "image": original["image"],
        "imagePullPolicy": original.get("imagePullPolicy", "IfNotPresent"),
        "command": ["python", "-I", "-S", "-c", f"import time; time.sleep({_LIFE_SECONDS})"],
        "env": [one for one in original["env"] if one["name"] == "TANDEM_STATE_DIR"],
        "securityContext": original.get("securityContext", {}),
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "volumeMounts": [{**one, "readOnly": True} for one in original["volumeMounts"] if one["name"] == "state"],
    }
    owner = {"apiVersion": "tandem-rl.dev/v1alpha1", "kind": "RLJob", "name": job.name, "uid": job.metadata["uid"]}
    spec = {name: template[name] for name in _KEPT if name in template}
    spec["volumes"] = [one for one in spec["volumes"] if one["name"] == "state"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{job.name}-report-",
            "namespace": job.namespace,
            "labels": {"app.kubernetes.io/part-of": "tandem", "app.kubernetes.io/component": "report"},
            "ownerReferences": [owner],
        },
        "spec": {
            **spec,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": _LIFE_SECONDS,
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
        },
    }


def _await(cluster: Cluster, namespace: str, name: str) -> None:
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        pod = cluster.pod(namespace, name)
        if pod.runs(ORCHESTRATOR):
            return
        if pod.phase in ("Failed", "Succeeded") or time.monotonic() > until:
            state = pod.containers[0].state
            raise ClusterError(f"pod {name}, which reads the job's volume, does not run: {pod.phase}, {state}")
        time.sleep(_LOOK_SECONDS)
