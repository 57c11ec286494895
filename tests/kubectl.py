# SPDX-License-Identifier: Apache-2.0
"""kubectl and helm on the cluster that the end-to-end tests run against."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts" / "tandem"
SYSTEM = "tandem-system"
RELEASE = "tandem"
ETCD = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=etcd"
"""Selects what belongs to the bundled etcd."""
CLUSTER = ROOT / "build" / "cluster"
TEST_ETCD = ("--set", "etcd.image.registry=localhost", "--set", "etcd.image.tag=test")
"""The etcd image that hack/load-images puts into the cluster of tests/cluster."""

KUBECONFIG = os.environ.get("TANDEM_E2E_KUBECONFIG", str(CLUSTER / "kubeconfig"))
ENVIRONMENT = {
    **os.environ,
    "KUBECONFIG": KUBECONFIG,
    # kubectl finds its plugin where the tests' interpreter is.
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:{CLUSTER / 'bin'}",
}


def run(*command: str, stdin: str = "") -> str:
    """What the command prints on either stream; it must succeed."""
    done = subprocess.run(
        command, input=stdin, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


def kubectl(*arguments: str, stdin: str = "") -> str:
    return run("kubectl", *arguments, stdin=stdin)


def helm(*arguments: str) -> str:
    return run("helm", *arguments)


def one(kind: str, name: str, namespace: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kubectl("get", kind, name, "-n", namespace, "-o", "json"))
    return found


def objects(kind: str, namespace: str, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(kubectl("get", kind, "-n", namespace, "-o", "json", *options))["items"]
    return found
