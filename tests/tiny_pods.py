# SPDX-License-Identifier: Apache-2.0
"""Job templates whose pods a real kubelet runs within a second: in each container an etcd plays the program's part."""

from typing import Any

IMAGE = "localhost/etcd:test"
"""What hack/load-images puts into the cluster of tests/cluster."""

_ETCD = "/usr/local/bin/etcd"
FAILING = [_ETCD, "--no-such-flag"]
"""A command that ends at once with exit code 2."""
HUNGRY = {"command": [_ETCD, "--data-dir=/dev/shm/etcd"]}
"""A container that takes 64 MiB of memory at once, for a log that is laid out in full."""


def _serving(port: int) -> dict[str, Any]:
    """A container that answers its probes at ``port`` as the real one does; it takes any free port for its peers."""
    url, peer = f"http://0.0.0.0:{port}", f"http://127.0.0.1:{port + 1000}"
    probe = {"httpGet": {"path": "/health"}}
    return {
        "command": [
            *(_ETCD, "--data-dir=/tmp/etcd", f"--listen-client-urls={url}", f"--advertise-client-urls={url}"),
            *(
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
            ),
        ],
        "startupProbe": probe,
        "readinessProbe": probe,
    }


def tiny(trainer: dict[str, Any] | None = None, pod: dict[str, Any] | None = None, **hybrid: Any) -> dict[str, Any]:
    """A spec for the tiny image, with ``trainer`` laid over that container, ``pod`` over the hybrid pods' spec."""
    idle = {"name": "trainer", "command": [_ETCD, "--data-dir=/tmp/etcd"], **(trainer or {})}
    containers = [{"name": "engine", **_serving(8081)}, idle]
    orchestrator = {"name": "orchestrator", **_serving(8080)}
    return {
        "engine": {"image": IMAGE},
        "trainer": {"image": IMAGE},
        "orchestrator": {"image": IMAGE, "template": {"spec": {"containers": [orchestrator]}}},
        "hybrid": {**hybrid, "template": {"spec": {**(pod or {}), "containers": containers}}},
    }
