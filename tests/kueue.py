# SPDX-License-Identifier: Apache-2.0
"""Kueue as a process of this machine, built from its Go module, before the API server of the tests."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from api_tls import secret
from go_module import built, fetched, install_kinds
from kubectl import KUBECONFIG
from ports import free_port

MODULE = "sigs.k8s.io/kueue@v0.15.0"
API = "v1beta2"
SUM = "h1:9Khzc2ne6/eWuZx5o+R4KlVBzh3kZkTIMzpPC2e8Spg="


def program() -> Path:
    """The controller; fetching its module and building it for the first time need the network."""
    return built(fetched(MODULE, SUM), "./cmd/kueue", "kueue")


@contextmanager
def kueue(directory: Path) -> Iterator[Path]:
    """Install its kinds and run it; yields its log. It needs root, for a certificate that it looks for in /etc."""
    install_kinds(fetched(MODULE, SUM), API)
    log = directory / "kueue.log"
    command = [str(program()), "--config", str(_configured(directory)), "--feature-gates=VisibilityOnDemand=false"]
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


def _configured(directory: Path) -> Path:
    """Jobs with a queue's name only, and nothing that listens for others. Its webhooks are not registered."""
    certificates_directory = directory / "certificates"
    secret(certificates_directory, "localhost")
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
    mounted = directory / "etc" / "kueue" / "metrics"
    mounted.mkdir(parents=True)
    secret(mounted / "certs", "localhost")
    mount = f"mount -t overlay overlay -o lowerdir={directory}/etc:/etc /etc"
    return ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
