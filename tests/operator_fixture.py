# SPDX-License-Identifier: Apache-2.0
"""RLJobs and observations for tests of the operator."""

from typing import Any

from tandem_api.labels import HYBRID, ORCHESTRATOR
from tandem_api.messages.phases import PhaseName, PhaseRecord
from tandem_api.rljob import RLJobObject
from tandem_operator.observed import Container, Observed, Pod, Workload
from tandem_operator.plan import Capabilities, Etcd, Images, Platform

NOW = 1_800_000_000.0
UID = "8f0b4a52-8a55-4f0e-9d0c-6a4a4a1c0b11"


def merged(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in patch.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def manifest(name: str = "sums", namespace: str = "team", **spec: Any) -> dict[str, Any]:
    """A small valid RLJob with ``spec`` laid over it."""
    smallest = {
        "iterations": 4,
        "model": {"source": {"random": {"config": {"hidden_size": 8}, "tokenizer": {"characters": "0123"}}}},
        "data": {"prompts": [{"reasoningGym": {"task": "chain_sum", "size": 100}}]},
        "algorithm": {"mirrorDescent": {}},
        "rewards": [{"name": "exact", "exact": {}}],
    }
    return {
        "apiVersion": "tandem-rl.dev/v1alpha1",
        "kind": "RLJob",
        "metadata": {"name": name, "namespace": namespace, "uid": UID, "generation": 1, "resourceVersion": "1"},
        "spec": merged(smallest, spec),
    }


def rljob(labels: dict[str, str] | None = None, status: dict[str, Any] | None = None, **spec: Any) -> RLJobObject:
    raw = manifest(**spec)
    raw["metadata"]["labels"] = labels or {}
    return RLJobObject.model_validate(raw | {"status": status or {}})


def platform(**capabilities: Any) -> Platform:
    found = Capabilities(**({"resource_api": "resource.k8s.io/v1"} | capabilities))
    return Platform(Images("orchestrator:1", "engine:1", "trainer:1"), Etcd(("etcd:2379",)), found)


def hybrid_pod(index: int = 0, *containers: Container, **fields: Any) -> Pod:
    """A pod that runs and is ready, unless ``fields`` say otherwise."""
    running = {"phase": "Running", "ready": True, "scheduled": True}
    return Pod(f"sums-hybrid-{index}", HYBRID, index=index, containers=containers, **(running | fields))


def workloads(**hybrid: Any) -> tuple[Workload, ...]:
    return (
        Workload("sums-orchestrator", ORCHESTRATOR, active=1),
        Workload("sums-hybrid", HYBRID, **({"active": 1} | hybrid)),
    )


def record(name: PhaseName, **fields: Any) -> PhaseRecord:
    given = {"epoch": 7, "iteration": 2, "weight_version": 2, "world": 1, "members": (0,), "started": NOW - 5}
    return PhaseRecord(name=name, **(given | fields))


def running(**fields: Any) -> Observed:
    """A job in the middle of its work."""
    given = {"pods": (hybrid_pod(),), "workloads": workloads(), "phase": record(PhaseName.ROLLOUT)}
    return Observed(**(given | fields))
