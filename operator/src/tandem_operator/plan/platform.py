# SPDX-License-Identifier: Apache-2.0
"""What plan() must know of the place a job runs in: images, etcd, and what the cluster can do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class Images:
    """Default images; a job's own ``image`` fields replace them.

    ``cpu_engine`` and ``cpu_trainer`` are for jobs without accelerators, where they need images of their own.
    """

    orchestrator: str
    engine: str
    trainer: str
    cpu_engine: str | None = None
    cpu_trainer: str | None = None
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()

    def engine_for(self, accelerated: bool) -> str:
        return self.engine if accelerated else self.cpu_engine or self.engine

    def trainer_for(self, accelerated: bool) -> str:
        return self.trainer if accelerated else self.cpu_trainer or self.trainer


@dataclass(frozen=True, slots=True)
class Etcd:
    """Where jobs keep their phases.

    ``endpoints`` are ``host:port``. With ``authenticated`` every job has a user of its own. ``pod_labels`` select
    etcd's pods in namespace ``namespace`` for NetworkPolicies; without them any address on etcd's ports is allowed.
    ``authorities`` are PEM certificates, with which etcd is spoken to over TLS.
    """

    endpoints: tuple[str, ...]
    authenticated: bool = False
    namespace: str | None = None
    pod_labels: Mapping[str, str] = field(default_factory=dict)
    authorities: str | None = None

    @property
    def ports(self) -> tuple[int, ...]:
        """The distinct ports of the endpoints, in ascending order."""
        return tuple(sorted({int(endpoint.rpartition(":")[2]) for endpoint in self.endpoints}))


class Gang(StrEnum):
    """An API by which all pods of a job are placed together or not at all."""

    KUBERNETES = "scheduling.k8s.io/v1alpha2"
    VOLCANO = "scheduling.volcano.sh/v1beta1"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the API server serves, as discovered when the operator starts.

    ``resource_api`` is the version of resource.k8s.io that has exact device requests (v1, v1beta2), None without DRA.
    """

    pod_level_resources: bool = False
    resource_api: str | None = None
    gang: Gang | None = None
    pod_monitor: bool = False


@dataclass(frozen=True, slots=True)
class Platform:
    """The place a job runs in. One value for all jobs of an operator.

    ``trace_collector`` is the URL to which orchestrators send traces; a job's own environment replaces it. ``tls``:
    pods of new jobs are to speak TLS with each other, for which plan() is given a certificate.
    """

    images: Images
    etcd: Etcd
    capabilities: Capabilities = Capabilities()
    storage_class_name: str | None = None
    trace_collector: str | None = None
    tls: bool = False
    orchestrator_resources: Mapping[str, Any] = field(
        default_factory=lambda: {"requests": {"cpu": "250m", "memory": "512Mi"}}
    )
    monitoring_namespace_labels: Mapping[str, str] = field(
        default_factory=lambda: {"kubernetes.io/metadata.name": "monitoring"}
    )
    user_id: int = 65532
    termination_grace_seconds: int = 120
