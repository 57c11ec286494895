# SPDX-License-Identifier: Apache-2.0
"""Another project's controller as a process of this machine, before the API server of the tests."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from api_tls import secret
from kubectl import KUBECONFIG, kubectl
from ports import free_port
from waiting import DEADLINE, until


def install_kinds(source: Path, api: str) -> None:
    """A controller's kinds in the one version that it works with: others would want its webhook for conversions."""
    kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(_definitions(source, api)))
    until(_all_established, DEADLINE, "all CustomResourceDefinitions are established")


def _definitions(source: Path, api: str) -> Iterator[dict[str, Any]]:
    for path in sorted((source / "config" / "components" / "crd" / "bases").glob("*.yaml")):
        found = yaml.safe_load(path.read_text())
        spec = found["spec"]
        spec["versions"] = [version | {"storage": True} for version in spec["versions"] if version["name"] == api]
        if spec["versions"]:
            yield found


def _all_established() -> bool:
    """kubectl wait fails on a definition whose conditions are still null."""
    found = json.loads(kubectl("get", "crd", "-o", "json"))["items"]
    conditions = [one.get("status", {}).get("conditions") or () for one in found]
    return all(any(told["type"] == "Established" and told["status"] == "True" for told in one) for one in conditions)


def configured(directory: Path, api: str, health: str, **settings: Any) -> Path:
    """Its defaults but for ``settings``: no leader election, and nothing that listens for others.

    Its webhooks are not registered. ``api``: of its configuration; ``health``: address and port.
    """
    certificates = secret(directory / "certificates", "localhost")
    path = directory / "controller.yaml"
    settings |= {
        "apiVersion": api,
        "kind": "Configuration",
        "health": {"healthProbeBindAddress": health},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": free_port(), "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process, from its start until the block is left."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=os.environ | {"KUBECONFIG": KUBECONFIG}, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)
