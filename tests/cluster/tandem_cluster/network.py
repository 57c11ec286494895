# SPDX-License-Identifier: Apache-2.0
"""The bridge of the pod network, and what the cluster leaves in the kernel's network tables."""

import json
import subprocess

from tandem_cluster.errors import ClusterError
from tandem_cluster.layout import BRIDGE, GATEWAY, POD_NETWORK


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError(f"{' '.join(command)} failed: {result.stderr.strip()}")
    return result.stdout


def _links(*selection: str) -> list[str]:
    return [link["ifname"] for link in json.loads(_run("ip", "-json", "link", "show", *selection) or "[]")]


def create_bridge() -> None:
    """Makes the bridge with the gateway's address, before the API server binds to it. Harmless when it is there."""
    if BRIDGE not in _links("type", "bridge"):
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
    prefix = POD_NETWORK.partition("/")[2]
    _run("ip", "address", "replace", f"{GATEWAY}/{prefix}", "dev", BRIDGE)
    _run("ip", "link", "set", BRIDGE, "up")


def _delete(link: str) -> None:
    try:
        _run("ip", "link", "delete", link)
    except ClusterError:
        # The kernel takes a pod's cable away with the pod's namespace, a moment after that is gone.
        if link in _links():
            raise


def remove_network() -> None:
    """Deletes the bridge, the pods' ends of their cables, and the proxy's and CNI's rules."""
    if BRIDGE in _links("type", "bridge"):
        for link in _links("master", BRIDGE):
            _delete(link)
        _delete(BRIDGE)
    for table in json.loads(_run("nft", "--json", "list", "tables"))["nftables"]:
        found = table.get("table", {})
        if found.get("name") == "kube-proxy":
            _run("nft", "delete", "table", found["family"], found["name"])
