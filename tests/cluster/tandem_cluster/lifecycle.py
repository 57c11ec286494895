# SPDX-License-Identifier: Apache-2.0
"""Brings the cluster up and takes it down again, whatever an earlier run left behind."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tandem_cluster import components, remains
from tandem_cluster.binaries import build_binaries
from tandem_cluster.components import Component, kubectl
from tandem_cluster.configuration import write_configuration, write_kubeconfigs
from tandem_cluster.errors import ClusterError
from tandem_cluster.images import copy_images, import_pause
from tandem_cluster.layout import LONGEST_STATE, Layout, Node
from tandem_cluster.network import create_bridge, remove_network
from tandem_cluster.processes import Process, ProcessTable

PACKAGES = ("conntrack", "containernetworking-plugins", "iproute2", "nftables", "openssl", "runc")
INSTALL = Path(__file__).resolve().parents[3] / "hack" / "debian-packages"
Step = Callable[[str], contextlib.AbstractContextManager[object]]
"""Announces a step of the work to the person who waits for it, and its end."""


class Cluster:
    """The cluster whose state lies in one folder.

    `up` and `down` may be called at any time and in any order: each looks at what is really there.
    """

    def __init__(self, state: Path) -> None:
        if len(str(state)) > LONGEST_STATE:
            raise ClusterError(
                f"the state folder {state} has {len(str(state))} characters, at most {LONGEST_STATE} leave room for "
                "the paths of Unix sockets: name a shorter one with --state"
            )
        self.layout = Layout(state)
        self._table = ProcessTable(self.layout.processes, self.layout.logs)

    def processes(self) -> list[Process]:
        return self._table.all()

    def running(self) -> bool:
        """Whether every process of a complete start is alive."""
        processes = self.processes()
        makers = (components.store, components.controllers, lambda layout: components.with_node(layout, 0))
        expected = {component.name for make in makers for component in make(self.layout)}
        return expected <= {found.name for found in processes} and all(found.running for found in processes)

    def up(self, step: Step, devices: int, *, nodes: bool = True) -> None:
        """Starts every component, each when the one before it is ready. Raises ClusterError with the log's end.

        Without `nodes` nothing is scheduled and no pod runs.
        """
        if os.geteuid() != 0:
            raise ClusterError("a kubelet needs root: run this as root, or use your own cluster (see README.md)")
        if self.running():
            return
        self.down(step)
        with step("Debian packages"):
            _install_packages()
        with step("programs (10 minutes when they are built for the first time)"):
            binaries = build_binaries()
        self._prepare(binaries)
        for component in components.store(self.layout):
            self._start(component, step)
        write_kubeconfigs(self.layout)
        rest = components.with_node(self.layout, devices) if nodes else []
        for component in components.controllers(self.layout) + rest:
            self._start(component, step)
            if component.name == "containerd":
                import_pause(self.layout.node)
        with step("StorageClass and DeviceClass"):
            self._apply_objects()

    def _prepare(self, binaries: Path) -> None:
        self.layout.state.mkdir(parents=True, exist_ok=True)
        self.layout.bin.unlink(missing_ok=True)
        self.layout.bin.symlink_to(binaries)
        write_configuration(self.layout)
        create_bridge()

    def _start(self, component: Component, step: Step) -> None:
        with step(component.name):
            process = self._table.start(component.name, component.command, component.environment)
            self._table.wait_ready(process, component.ready, component.seconds)

    def _apply_objects(self) -> None:
        manifest = "\n---\n".join(json.dumps(found) for found in components.objects())
        result = kubectl(self.layout, "apply", "--server-side", "-f", "-", stdin=manifest)
        if result.returncode != 0:
            raise ClusterError(f"kubectl apply failed: {result.stderr.strip()}")

    def join(self, step: Step) -> None:
        """Adds the second node. Raises ClusterError when the cluster is not up."""
        if not self.running():
            raise ClusterError("the cluster is not up: start it with `cluster.py up`")
        node = self.layout.second_node
        containerd, kubelet = parts = components.of_node(self.layout, node)
        if len(self._processes_of(node)) == len(parts):
            return
        # An earlier call may not have come to its end.
        self.lose(step)
        remains.create_cgroups(node)
        self._start(containerd, step)
        with step("copying images"):
            copy_images(self.layout.node, node)
        self._start(kubelet, step)

    def lose(self, step: Step) -> None:
        """Cuts the second node's power. What Kubernetes knows of it stays. Harmless when it is not there."""
        node = self.layout.second_node
        with step("cutting the power"):
            remains.cut_network(node)
            self._table.stop(self._processes_of(node), by=signal.SIGKILL)
            remains.kill_shims(node)
            remains.kill_pods(node)
        for directory in (node.containerd_run, node.kubelet, node.containerd, node.pod_logs):
            remains.unmount_below(directory)
            if directory.exists():
                shutil.rmtree(directory)
        remains.remove_cgroups(node)

    def _processes_of(self, node: Node) -> list[Process]:
        names = [component.name for component in components.of_node(self.layout, node)]
        return [process for process in self.processes() if process.name in names]

    def down(self, step: Step, *, purge: bool = False) -> None:
        """Ends the cluster and everything that ran in it; keeps images and logs unless `purge`."""
        node, second = self.layout.nodes
        if self._processes_of(second) or remains.cgroups(second):
            self.lose(step)
        processes = self.processes()
        containerd = [process for process in processes if process.name == "containerd"]
        if processes:
            with step("stopping components"):
                self._table.stop([process for process in processes if process not in containerd])
        if containerd or remains.cgroups(node):
            with step("removing pods"):
                remains.kill_pods(node)
                if any(process.running for process in containerd):
                    remains.remove_containers(node)
                self._table.stop(containerd)
                remains.kill_shims(node)
        self._clean(purge)

    def _clean(self, purge: bool) -> None:
        remains.unmount_below(self.layout.state)
        for node in self.layout.nodes:
            remains.remove_cgroups(node)
        if shutil.which("nft") and shutil.which("ip"):
            remove_network()
        if not self.layout.state.exists():
            return
        keep = set() if purge else {self.layout.node.containerd, self.layout.logs}
        for entry in self.layout.state.iterdir():
            if entry in keep:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _install_packages() -> None:
    result = subprocess.run([INSTALL, *PACKAGES], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError(f"cannot install Debian packages: {result.stderr.strip()}")
