# SPDX-License-Identifier: Apache-2.0
"""Kueue as a process of this machine, built from its Go module, before the API server of the tests."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from go_module import fetched
from kubectl import KUBECONFIG, kubectl
from ports import free_port

from tandem_operator import certificates

VERSION = "v0.15.0"
MODULE = f"sigs.k8s.io/kueue@{VERSION}"
API = "v1beta2"
SUM = "h1:9Khzc2ne6/eWuZx5o+R4KlVBzh3kZkTIMzpPC2e8Spg="


@contextmanager
def kueue(directory: Path) -> Iterator[Path]:
    """Install its kinds and run it; yields its log. It needs root, for a certificate that it looks for in /etc."""
    source = fetched(MODULE, SUM)
    kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(_definitions(source)))
    kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
    log = directory / "kueue.log"
    command = [str(_built(source)), "--config", str(_configured(directory)), "--feature-gates=VisibilityOnDemand=false"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_with_certificates(directory), *command],
            env=os.environ | {"KUBECONFIG": KUBECONFIG},
            stdout=output,
            stderr=output,
        )
        try:
            yield log
        finally:
            process.terminate()
            process.wait(60)


def _definitions(source: Path) -> Iterator[dict[str, Any]]:
    """Its kinds in the version that it works with: others would want its webhook for conversions."""
    for path in sorted((source / "config" / "components" / "crd" / "bases").glob("*.yaml")):
        found = yaml.safe_load(path.read_text())
        spec = found["spec"]
        spec["versions"] = [version | {"storage": True} for version in spec["versions"] if version["name"] == API]
        if spec["versions"]:
            yield found


def _built(source: Path) -> Path:
    """The program; it is built once, in minutes, and kept outside the tree."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem" / "kueue"
    program = cache / VERSION
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as unfinished:
            # Go builds no program of a module in place of the main one, and its module cache cannot be written to.
            tree = Path(shutil.copytree(source, Path(unfinished) / "source"))
            for folder, _, _ in os.walk(tree):
                Path(folder).chmod(0o755)
            (tree / "go.mod").chmod(0o644)
            (tree / "go.sum").chmod(0o644)
            build = ["go", "build", "-ldflags", "-s -w", "-o", f"{unfinished}/kueue", "./cmd/kueue"]
            subprocess.run(["nice", "-n", "10", *build], cwd=tree, env=os.environ | {"CGO_ENABLED": "0"}, check=True)
            Path(unfinished, "kueue").rename(program)
    return program


def _configured(directory: Path) -> Path:
    """Jobs with a queue's name only, and nothing that listens for others. Its webhooks are not registered."""
    certificates_directory = directory / "certificates"
    _write_certificate(certificates_directory)
    path = directory / "kueue.yaml"
    settings = {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "health": {"healthProbeBindAddress": f"127.0.0.1:{free_port()}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": free_port(), "certDir": str(certificates_directory)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "integrations": {"frameworks": ["batch/job"]},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def _with_certificates(directory: Path) -> list[str]:
    """The start of a command that sees, in a view of files of its own, a certificate where Kueue looks for one."""
    _write_certificate(directory / "etc" / "kueue" / "metrics" / "certs")
    mount = f"mount -t overlay overlay -o lowerdir={directory}/etc:/etc /etc"
    return ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]


def _write_certificate(directory: Path) -> None:
    directory.mkdir(parents=True)
    drawn = certificates.draw(["localhost"])
    (directory / "tls.crt").write_text(drawn.certificate)
    (directory / "tls.key").write_text(drawn.key)
