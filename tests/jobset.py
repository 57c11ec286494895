# SPDX-License-Identifier: Apache-2.0
"""JobSet's controller as a process of this machine, built from its Go module, before the API server of the tests."""

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from api_tls import secret
from go_module import built, fetched, install_kinds
from kubectl import KUBECONFIG
from ports import free_port
from waiting import until

MODULE = "sigs.k8s.io/jobset@v0.10.1"
API = "v1alpha2"
SUM = "h1:u8QKifNsrWVrlRFe6w2ofYTqFT9ma2DRHxfeB2m9xyU="
PARTS = ("leader", "worker")
"""The replicated jobs of :func:`manifest`, each one Job with one pod."""


def program() -> Path:
    """The controller; fetching its module and building it for the first time need the network."""
    return built(fetched(MODULE, SUM), ".", "jobset")


@contextmanager
def jobset(directory: Path) -> Iterator[int]:
    """Install its kind and run it; yields its process id once it is ready."""
    install_kinds(fetched(MODULE, SUM), API)
    health, log = f"127.0.0.1:{free_port()}", directory / "jobset.log"
    # The log level is that of its published manifests.
    options = ["--config", str(_configured(directory, health)), "--zap-log-level=2"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program(), *options],
            env=os.environ | {"KUBECONFIG": KUBECONFIG},
            stdout=output,
            stderr=output,
        )

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"http://{health}/readyz", timeout=2) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        try:
            until(ready, 60, "JobSet's controller is ready")
            yield process.pid
        finally:
            process.terminate()
            process.wait(60)


def manifest(name: str, namespace: str) -> dict[str, Any]:
    """Two Jobs and a headless Service, with every default that JobSet's webhook, not registered here, would set."""
    containers = [{"name": "main", "image": "tandem.invalid/none:1"}]
    job = {"completionMode": "Indexed", "template": {"spec": {"restartPolicy": "OnFailure", "containers": containers}}}
    return {
        "apiVersion": f"jobset.x-k8s.io/{API}",
        "kind": "JobSet",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicatedJobs": [{"name": part, "replicas": 1, "template": {"spec": job}} for part in PARTS],
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "successPolicy": {"operator": "All"},
            "startupPolicy": {"startupPolicyOrder": "AnyOrder"},
        },
    }


def _configured(directory: Path, health: str) -> Path:
    """Its defaults, but no leader election and nothing that listens for others."""
    certificates = directory / "jobset-certificates"
    secret(certificates, "localhost")
    path = directory / "jobset.yaml"
    settings = {
        "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "health": {"healthProbeBindAddress": health},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": free_port(), "certDir": str(certificates)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
    }
    path.write_text(yaml.safe_dump(settings))
    return path
