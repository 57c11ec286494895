# SPDX-License-Identifier: Apache-2.0
"""What the pods are told: the job file, the job's secrets, and an account that may do nothing."""

from tandem_api.environment import ETCD_AUTHORITIES, Job, Secrets
from tandem_api.rljob import RLJobObject
from tandem_operator.plan import identity
from tandem_operator.plan.identity import Manifest


def service_account(job: RLJobObject) -> Manifest:
    """No token is mounted and no role bound: the pods never talk to the Kubernetes API."""
    return identity.owned(job, "v1", "ServiceAccount", job.metadata.name, automountServiceAccountToken=False)


def job_file(job: RLJobObject) -> Manifest:
    """The spec as the processes read it, with every default filled in."""
    meta = job.metadata
    data = {"job.json": Job(meta.namespace, meta.name, meta.uid, job.spec).dump()}
    return identity.owned(job, "v1", "ConfigMap", identity.spec_name(meta.name), data=data)


def secrets(job: RLJobObject, values: Secrets, etcd_authorities: str | None) -> Manifest:
    """The job's token, its etcd user where etcd asks for one, and whose word proves that it is etcd."""
    content = {
        "token": values.token,
        "etcd-username": values.etcd_username,
        "etcd-password": values.etcd_password,
        ETCD_AUTHORITIES: etcd_authorities,
    }
    data = {name: value for name, value in content.items() if value is not None}
    name = identity.secrets_name(job.metadata.name)
    return identity.owned(job, "v1", "Secret", name, type="Opaque", stringData=data)
