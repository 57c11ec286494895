# SPDX-License-Identifier: Apache-2.0
"""What TLS between a job's pods adds to its objects: a Secret, and a piece of each of the two pod templates.

Its key is mounted into the orchestrator's container alone; members see the certificate.
"""

from dataclasses import dataclass, field

from tandem_api import environment as env
from tandem_api import tls
from tandem_api.labels import ORCHESTRATOR
from tandem_api.rljob import RLJobObject
from tandem_operator.plan import identity
from tandem_operator.plan.identity import Manifest

TLS_DIR = "/var/run/secrets/tandem-tls"
VOLUME = "tandem-tls"
_SERVER = "orchestrator"
_MEMBERS = ("engine", "trainer")


@dataclass(frozen=True, slots=True)
class Certificate:
    """The orchestrator's certificate and its private key, both PEM."""

    certificate: str
    key: str = field(repr=False)


def server_names(job: RLJobObject) -> tuple[str, ...]:
    """The names by which pods reach the orchestrator's Service; the first is what they are told."""
    name, namespace = identity.orchestrator_name(job.metadata.name), job.metadata.namespace
    return name, f"{name}.{namespace}", f"{name}.{namespace}.svc"


def secret(job: RLJobObject, drawn: Certificate) -> Manifest:
    data = {tls.CERTIFICATE: drawn.certificate, tls.KEY: drawn.key}
    name = identity.tls_name(job.metadata.name)
    return identity.owned(job, "v1", "Secret", name, ORCHESTRATOR, type="kubernetes.io/tls", stringData=data)


def served(job: RLJobObject) -> Manifest:
    """The orchestrator's side, as a piece of its pod template."""
    probe = {"httpGet": {"scheme": "HTTPS"}}
    container = _container(job, _SERVER) | {"startupProbe": probe, "readinessProbe": probe}
    return {"spec": {"containers": [container], "volumes": [_volume(job)]}}


def believed(job: RLJobObject) -> Manifest:
    """The members' side, as a piece of the hybrid pods' template."""
    volume = _volume(job)
    volume["secret"]["items"] = [{"key": tls.CERTIFICATE, "path": tls.CERTIFICATE}]
    return {"spec": {"containers": [_container(job, name) for name in _MEMBERS], "volumes": [volume]}}


def _volume(job: RLJobObject) -> Manifest:
    return {"name": VOLUME, "secret": {"secretName": identity.tls_name(job.metadata.name), "defaultMode": 0o440}}


def _container(job: RLJobObject, name: str) -> Manifest:
    told = {env.TLS_DIR: TLS_DIR, env.ORCHESTRATOR_URL: f"https://{server_names(job)[0]}:{env.ORCHESTRATOR_PORT}"}
    return {
        "name": name,
        "env": [{"name": variable, "value": value} for variable, value in told.items()],
        "volumeMounts": [{"name": VOLUME, "mountPath": TLS_DIR, "readOnly": True}],
    }
