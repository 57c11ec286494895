# SPDX-License-Identifier: Apache-2.0
"""What a container is told by its pod template: names are written here once, for those who set and those who read."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from tandem_api.errors import Problem, UserError
from tandem_api.spec import RLJobSpec

log = structlog.get_logger()

JOB_FILE = "TANDEM_JOB_FILE"
SECRETS_DIR = "TANDEM_SECRETS_DIR"
TLS_DIR = "TANDEM_TLS_DIR"
ETCD_ENDPOINTS = "TANDEM_ETCD_ENDPOINTS"
ORCHESTRATOR_URL = "TANDEM_ORCHESTRATOR_URL"
RUN_DIR = "TANDEM_RUN_DIR"
STATE_DIR = "TANDEM_STATE_DIR"
CHECKPOINT_DIR = "TANDEM_CHECKPOINT_DIR"
POD_NAME = "TANDEM_POD_NAME"
POD_UID = "TANDEM_POD_UID"
POD_IP = "TANDEM_POD_IP"
RENDEZVOUS = "TANDEM_RENDEZVOUS"
LOG_FORMAT = "TANDEM_LOG_FORMAT"
COMPLETION_INDEX = "JOB_COMPLETION_INDEX"

ENGINE_MEMORY = "TANDEM_ENGINE_MEMORY"
"""What a sidecar tells its engine: how the names of its shared memory begin."""

COLLECTOR = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACE_COLLECTOR = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
"""OpenTelemetry's own names for where traces go (docs/tracing.md)."""

ETCD_AUTHORITIES = "etcd-ca.crt"
"""The file in SECRETS_DIR that makes etcd's clients use TLS: certificates of the authorities they believe."""

TERMINATION_LOG = Path("/dev/termination-log")
"""Where Kubernetes takes a container's last words from, up to 4096 bytes of them; elsewhere there is no such file."""

EXIT_USER_ERROR = 2
"""What the user gave is wrong; the last words say what. Starting again does not help."""

ORCHESTRATOR_PORT = 8080
SIDECAR_PORT = 8081
METRICS_PORT = 9400
RENDEZVOUS_PORT = 29400


_CHANGEABLE = ("schedule", "checkpoint", "run_policy")


@dataclass(frozen=True, slots=True)
class Job:
    """One RLJob as its processes see it. ``file`` is where it was read from."""

    namespace: str
    name: str
    uid: str
    spec: RLJobSpec
    file: Path | None = field(default=None, compare=False)

    @staticmethod
    def read(path: Path) -> "Job":
        """Read the mounted job file.

        Raises:
            UserError: the file is missing or is not a job.
        """
        try:
            raw = json.loads(path.read_text())
            return Job(raw["namespace"], raw["name"], raw["uid"], RLJobSpec.model_validate(raw["spec"]), path)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(Problem(str(path), f"is not a readable job file: {error}")) from error

    def refreshed(self) -> "Job":
        """The job as its file has it now: what may change while a job runs is taken from there, nothing else.

        A kubelet brings a mounted ConfigMap up to date within about a minute. A file that cannot be read changes
        nothing.
        """
        if self.file is None:
            return self
        try:
            now = Job.read(self.file)
        except UserError as error:
            log.warning("the job file cannot be read again", error=str(error))
            return self
        if now.uid != self.uid:
            return self
        changed = {name: getattr(now.spec, name) for name in _CHANGEABLE}
        iterations = max(self.spec.iterations, now.spec.iterations)
        return replace(self, spec=self.spec.model_copy(update={**changed, "iterations": iterations}))

    def dump(self) -> str:
        """The job file's text."""
        spec = self.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps({"namespace": self.namespace, "name": self.name, "uid": self.uid, "spec": spec}, indent=2)


@dataclass(frozen=True, slots=True)
class Secrets:
    """What proves a process to be part of its job. Never logged: ``repr`` hides the values."""

    token: str
    etcd_username: str | None = None
    etcd_password: str | None = None

    def __repr__(self) -> str:
        return "Secrets(…)"

    @staticmethod
    def read(directory: Path) -> "Secrets":
        """Read the mounted Secret: ``token``, and ``etcd-username`` and ``etcd-password`` where etcd asks for them."""

        def text(name: str) -> str | None:
            file = directory / name
            return file.read_text().strip() if file.exists() else None

        token = text("token")
        if not token:
            raise UserError(Problem(str(directory / "token"), "is missing or empty; the job's Secret holds it"))
        return Secrets(token, text("etcd-username"), text("etcd-password"))


class Environment:
    """Typed access to the variables above.

    >>> Environment({"TANDEM_RUN_DIR": "/run/tandem"}).path(RUN_DIR)
    PosixPath('/run/tandem')
    """

    def __init__(self, variables: Mapping[str, str] = os.environ) -> None:
        self._variables = variables

    def text(self, name: str) -> str:
        """The variable's value.

        Raises:
            UserError: it is not set.
        """
        try:
            return self._variables[name]
        except KeyError:
            raise UserError(Problem(name, "is not set; the pod template of this job sets it")) from None

    def path(self, name: str) -> Path:
        return Path(self.text(name))

    def number(self, name: str) -> int:
        """The variable's value, a whole number.

        Raises:
            UserError: it is not set, or is none.
        """
        text = self.text(name)
        try:
            return int(text)
        except ValueError:
            raise UserError(Problem(name, f"must be a whole number; found {text!r}")) from None

    def job(self) -> Job:
        return Job.read(self.path(JOB_FILE))

    def secrets(self) -> Secrets:
        return Secrets.read(self.path(SECRETS_DIR))

    def etcd_endpoints(self) -> tuple[str, ...]:
        return tuple(self.text(ETCD_ENDPOINTS).split(","))

    @property
    def collector_named(self) -> bool:
        """Whether traces are wanted: a collector is named, and OpenTelemetry is not switched off."""
        named = self._variables.get(COLLECTOR) or self._variables.get(TRACE_COLLECTOR)
        return bool(named) and self._variables.get("OTEL_SDK_DISABLED", "").lower() != "true"

    def etcd_authorities(self) -> Path | None:
        """Where the authorities' certificates lie; None where etcd is spoken to without TLS."""
        file = self.path(SECRETS_DIR) / ETCD_AUTHORITIES
        return file if file.exists() else None

    def tls_directory(self) -> Path | None:
        """Where the orchestrator's certificate lies (tandem_api.tls); None where its API is served without TLS."""
        return self.path(TLS_DIR) if TLS_DIR in self._variables else None
