# SPDX-License-Identifier: Apache-2.0
"""How an operator is set up: one JSON file, which the chart writes from its values."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from tandem_api.base import Contract
from tandem_api.errors import Problem, UserError
from tandem_operator.plan.platform import Capabilities, Etcd, Gang, Images, Platform

CONFIG_FILE = "TANDEM_OPERATOR_CONFIG"
CREDENTIALS_DIR = "TANDEM_ETCD_CREDENTIALS_DIR"
IDENTITY = "TANDEM_OPERATOR_IDENTITY"


class Choice(StrEnum):
    """Whether to use what a cluster may or may not have. Auto: if it is there."""

    AUTO = "Auto"
    NEVER = "Never"


class ImageSettings(Contract):
    """Default images of the three programs; ``cpu_…`` for jobs without accelerators."""

    orchestrator: str
    engine: str
    trainer: str
    cpu_engine: str | None = None
    cpu_trainer: str | None = None
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()


class EtcdSettings(Contract):
    """``auth``: each job gets a user, made by the operator's own, whose credentials lie in CREDENTIALS_DIR.

    ``authorities_file``: PEM file with the authorities that etcd's certificate is signed by; without it, no TLS.
    """

    endpoints: tuple[str, ...] = Field(min_length=1)
    auth: bool = False
    authorities_file: Path | None = None
    namespace: str | None = None
    pod_labels: dict[str, str] = Field(default_factory=dict)

    def platform(self) -> Etcd:
        """What jobs are told of it.

        Raises:
            UserError: the authorities' file cannot be read.
        """
        try:
            authorities = self.authorities_file.read_text() if self.authorities_file else None
        except OSError as error:
            raise UserError(Problem(str(self.authorities_file), f"cannot be read: {error.strerror}")) from error
        return Etcd(self.endpoints, self.auth, self.namespace, self.pod_labels, authorities)


class LeaderElection(Contract):
    """Durations in seconds. A leader gives up ``renew_deadline`` after its last renewal, before others take over."""

    namespace: str = "default"
    name: str = "tandem-operator"
    duration: float = Field(15.0, gt=0)
    renew_deadline: float = Field(10.0, gt=0)
    retry_period: float = Field(2.0, gt=0)


class Configuration(Contract):
    """``namespaces``: those whose RLJobs are looked after; none means all. ``trace_collector``: URL, OTLP over HTTP.

    ``job_tls``: pods of new jobs speak TLS with each other.
    """

    images: ImageSettings
    etcd: EtcdSettings
    namespaces: tuple[str, ...] = ()
    leader_election: LeaderElection = LeaderElection()
    workers: int = Field(16, gt=0, le=256)
    port: int = Field(8080, gt=0, lt=65536)
    gang_scheduling: Choice = Choice.AUTO
    pod_monitors: Choice = Choice.AUTO
    pod_level_resources: Choice = Choice.AUTO
    storage_class_name: str | None = None
    trace_collector: str | None = None
    job_tls: bool = False
    monitoring_namespace_labels: dict[str, str] = Field(
        default_factory=lambda: {"kubernetes.io/metadata.name": "monitoring"}
    )

    @staticmethod
    def read(path: Path) -> "Configuration":
        """Read the file.

        Raises:
            UserError: it is missing, or a field of it is wrong.
        """
        try:
            return Configuration.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UserError(Problem(str(path), f"cannot be read: {error.strerror}; {CONFIG_FILE} names it")) from error
        except ValidationError as error:
            problems = [
                Problem(f"{path}: {'.'.join(map(str, wrong['loc']))}", wrong["msg"]) for wrong in error.errors()
            ]
            raise UserError(*problems) from error

    def platform(self, found: Capabilities) -> Platform:
        """The platform that jobs run on, with what was discovered as far as it may be used."""

        def allowed[T](choice: Choice, value: T, without: T) -> T:
            return value if choice is Choice.AUTO else without

        gang: Gang | None = allowed(self.gang_scheduling, found.gang, None)
        return Platform(
            images=Images(**self.images.model_dump()),
            etcd=self.etcd.platform(),
            capabilities=Capabilities(
                pod_level_resources=allowed(self.pod_level_resources, found.pod_level_resources, False),
                resource_api=found.resource_api,
                gang=gang,
                pod_monitor=allowed(self.pod_monitors, found.pod_monitor, False),
            ),
            storage_class_name=self.storage_class_name,
            trace_collector=self.trace_collector,
            tls=self.job_tls,
            monitoring_namespace_labels=self.monitoring_namespace_labels,
        )


def etcd_credentials(environment: Any = os.environ) -> tuple[str, str] | None:
    """User name and password of the operator at etcd, from the mounted Secret; None where etcd asks for none."""
    directory = environment.get(CREDENTIALS_DIR)
    if not directory:
        return None
    username, password = ((Path(directory) / name).read_text().strip() for name in ("username", "password"))
    return username, password
