# SPDX-License-Identifier: Apache-2.0
"""JobSet's controller as a process of this machine, built from its Go module, before the API server of the tests."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from go_controller import configured, install_kinds, running
from go_module import built, fetched
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
    config = configured(directory, "config.jobset.x-k8s.io/v1alpha1", health)
    # The log level is that of its published manifests.
    with running([str(program()), "--config", str(config), "--zap-log-level=2"], log) as process:

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"http://{health}/readyz", timeout=2) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        until(ready, 60, "JobSet's controller is ready")
        yield process.pid


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
