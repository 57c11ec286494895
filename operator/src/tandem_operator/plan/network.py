# SPDX-License-Identifier: Apache-2.0
"""Services, and NetworkPolicies that allow what a job needs and nothing else.

NetworkPolicies add up: a user who needs more (a reward service on another port) writes one beside these.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from tandem_api import environment as env
from tandem_api.labels import HYBRID, ORCHESTRATOR
from tandem_api.rljob import RLJobObject
from tandem_operator.plan import identity
from tandem_operator.plan.identity import Manifest
from tandem_operator.plan.platform import Platform


def orchestrator_service(job: RLJobObject) -> Manifest:
    spec = {
        "selector": identity.selector(job, ORCHESTRATOR),
        "ports": [{"name": "http", "port": env.ORCHESTRATOR_PORT, "targetPort": env.ORCHESTRATOR_PORT}],
    }
    name = identity.orchestrator_name(job.metadata.name)
    return identity.owned(job, "v1", "Service", name, ORCHESTRATOR, spec=spec)


def hybrid_service(job: RLJobObject) -> Manifest:
    """Gives each hybrid pod its name; also before it is ready, since the trainers meet before that."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": identity.selector(job, HYBRID),
        "ports": [{"name": "rendezvous", "port": env.RENDEZVOUS_PORT, "targetPort": env.RENDEZVOUS_PORT}],
    }
    return identity.owned(job, "v1", "Service", identity.hybrid_name(job.metadata.name), HYBRID, spec=spec)


def orchestrator_policy(job: RLJobObject, platform: Platform) -> Manifest:
    """In: the job's sidecars and trainers, and monitoring. Out: DNS, etcd, reward services, traces, the model hub."""
    hybrid = {"podSelector": {"matchLabels": identity.selector(job, HYBRID)}}
    ingress = [{"from": [hybrid], "ports": _tcp(env.ORCHESTRATOR_PORT)}, _monitoring(platform)]
    egress = [*_egress(job, platform), *_judges(job), *_collectors(job, platform)]
    return _policy(job, ORCHESTRATOR, identity.orchestrator_name(job.metadata.name), ingress, egress)


def hybrid_policy(job: RLJobObject, platform: Platform) -> Manifest:
    """Among themselves everything, since collectives choose their ports; otherwise as the orchestrator."""
    peers = {"podSelector": {"matchLabels": identity.selector(job, HYBRID)}}
    master = {"podSelector": {"matchLabels": identity.selector(job, ORCHESTRATOR)}}
    ingress = [{"from": [peers]}, _monitoring(platform)]
    egress = [{"to": [peers]}, {"to": [master], "ports": _tcp(env.ORCHESTRATOR_PORT)}, *_egress(job, platform)]
    return _policy(job, HYBRID, identity.hybrid_name(job.metadata.name), ingress, egress)


def _policy(job: RLJobObject, component: str, name: str, ingress: list[Manifest], egress: list[Manifest]) -> Manifest:
    spec = {
        "podSelector": {"matchLabels": identity.selector(job, component)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress,
        "egress": egress,
    }
    return identity.owned(job, "networking.k8s.io/v1", "NetworkPolicy", name, component, spec=spec)


def _tcp(*ports: int) -> list[Manifest]:
    return [{"protocol": "TCP", "port": port} for port in ports]


def _monitoring(platform: Platform) -> Manifest:
    namespaces = {"namespaceSelector": {"matchLabels": dict(platform.monitoring_namespace_labels)}}
    return {"from": [namespaces], "ports": _tcp(env.METRICS_PORT)}


def _egress(job: RLJobObject, platform: Platform) -> list[Manifest]:
    dns = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
    etcd: Manifest = {"ports": _tcp(*platform.etcd.ports)}
    if platform.etcd.pod_labels:
        etcd["to"] = [
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": platform.etcd.namespace}},
                "podSelector": {"matchLabels": dict(platform.etcd.pod_labels)},
            }
        ]
    source = job.spec.model.source.hf
    hub = [{"ports": _tcp(443)}] if source and not source.path.startswith("/") else []
    return [dns, etcd, *hub]


def _judges(job: RLJobObject) -> list[Manifest]:
    return _urls(reward.judge.url for reward in job.spec.rewards if reward.judge)


def _collectors(job: RLJobObject, platform: Platform) -> list[Manifest]:
    own = {variable["name"]: variable.get("value") for variable in job.spec.orchestrator.env}
    named = {env.COLLECTOR: platform.trace_collector} | own
    return _urls(url for name in (env.COLLECTOR, env.TRACE_COLLECTOR) if (url := named.get(name)))


def _urls(urls: Iterable[str]) -> list[Manifest]:
    parts = [urlsplit(url) for url in urls]
    ports = sorted({url.port or (443 if url.scheme == "https" else 80) for url in parts})
    return [{"ports": _tcp(*ports)}] if ports else []
