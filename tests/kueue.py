# SPDX-License-Identifier: Apache-2.0
"""Kueue as a process of this machine, built from its Go module, before the API server of the tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from api_tls import secret
from go_controller import configured, install_kinds, running
from go_module import built, fetched
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
    log, health = directory / "kueue.log", f"127.0.0.1:{free_port()}"
    # It looks after Jobs with a queue's name only.
    config = configured(directory, f"config.kueue.x-k8s.io/{API}", health, integrations={"frameworks": ["batch/job"]})
    command = [str(program()), "--config", str(config), "--feature-gates=VisibilityOnDemand=false"]
    with running([*_with_certificates(directory), *command], log):
        yield log


def _with_certificates(directory: Path) -> list[str]:
    """The start of a command that sees, in a view of files of its own, a certificate where Kueue looks for one."""
    mounted = directory / "etc" / "kueue" / "metrics"
    mounted.mkdir(parents=True)
    secret(mounted / "certs", "localhost")
    mount = f"mount -t overlay overlay -o lowerdir={directory}/etc:/etc /etc"
    return ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
