# SPDX-License-Identifier: Apache-2.0
"""Builds Kubernetes, etcd, CoreDNS, Helm and containerd from source, once for each version of that source."""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tandem_cluster.errors import ClusterError

CONTAINERD_VERSION = "v2.4.2"
MODULE = Path(__file__).resolve().parent.parent
# The names that main.go answers to.
PROGRAMS = (
    "coredns",
    "etcd",
    "fake-dra-driver",
    "helm",
    "hostpath-volumes",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)
CONTAINERD_PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr")


def cache_root() -> Path:
    """Where builds live: outside the tree, so that a clean checkout finds them again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem"


def node_directory() -> Path:
    """The folder of this source's build, named by the hash of everything that goes into it."""
    digest = hashlib.sha256(CONTAINERD_VERSION.encode())
    for path in sorted([*MODULE.rglob("*.go"), MODULE / "go.mod", MODULE / "go.sum"]):
        digest.update(f"{path.relative_to(MODULE)}\0".encode() + path.read_bytes())
    return cache_root() / "cluster" / digest.hexdigest()[:16]


def _go(*arguments: str, **environment: str) -> None:
    result = subprocess.run(
        ["nice", "-n", "10", "go", *arguments],
        cwd=MODULE,
        env=os.environ | {"CGO_ENABLED": "0"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise ClusterError(f"go {' '.join(arguments)} failed:\n{result.stderr.strip()[-4000:]}")


def _version_flags() -> str:
    """What Kubernetes says of its own version comes from the linker; go.mod has it."""
    found = re.search(r"k8s\.io/kubernetes (v(\d+)\.(\d+)\.\d+)", (MODULE / "go.mod").read_text())
    if found is None:
        raise ClusterError(f"{MODULE / 'go.mod'} requires no k8s.io/kubernetes")
    values = {"gitVersion": found[1], "gitMajor": found[2], "gitMinor": found[3]}
    return " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in values.items())


def _build(directory: Path) -> None:
    _go("build", "-trimpath", "-ldflags", f"-s -w {_version_flags()}", "-o", str(directory / "node"), ".")
    _go("build", "-trimpath", "-ldflags", "-s -w", "-o", str(directory / "pause"), "./pause")
    commands = [f"github.com/containerd/containerd/v2/cmd/{name}@{CONTAINERD_VERSION}" for name in CONTAINERD_PROGRAMS]
    _go("install", "-trimpath", "-ldflags", "-s -w", *commands, GOBIN=str(directory))
    for name in PROGRAMS:
        (directory / name).symlink_to("node")


def build_binaries() -> Path:
    """Returns the folder with all programs; builds them first where this source was not built yet."""
    directory = node_directory()
    if directory.exists():
        return directory
    if shutil.which("go") is None:
        raise ClusterError("the test cluster is built from source: install Go (go.mod names the version) and retry")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix="build-") as unfinished:
        binaries = Path(unfinished) / "bin"
        _build(binaries)
        binaries.rename(directory)
    return directory
