# SPDX-License-Identifier: Apache-2.0
"""Brings the cluster up and takes it down again, whatever an earlier run left behind."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tandem_cluster import components
from tandem_cluster.binaries import build_binaries
from tandem_cluster.components import Component, ctr, kubectl
from tandem_cluster.configuration import write_configuration, write_kubeconfigs
from tandem_cluster.errors import ClusterError
from tandem_cluster.images import import_pause
from tandem_cluster.layout import LONGEST_STATE, Layout
from tandem_cluster.network import create_bridge, remove_network
from tandem_cluster.processes import Process, ProcessTable, wait_until

PACKAGES = ("conntrack", "containernetworking-plugins", "iproute2", "nftables", "openssl", "runc")
INSTALL = Path(__file__).resolve().parents[3] / "hack" / "debian-packages"
CGROUPS = Path("/sys/fs/cgroup")
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
        makers = (components.store, components.controllers, lambda layout: components.node(layout, 0))
        expected = sum(len(make(self.layout)) for make in makers)
        return len(processes) == expected and all(process.running for process in processes)

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
        rest = components.node(self.layout, devices) if nodes else []
        for component in components.controllers(self.layout) + rest:
            self._start(component, step)
            if component.name == "containerd":
                import_pause(self.layout)
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

    def down(self, step: Step, *, purge: bool = False) -> None:
        """Ends the cluster and everything that ran in it; keeps images and logs unless `purge`."""
        processes = self.processes()
        containerd = [process for process in processes if process.name == "containerd"]
        if processes:
            with step("stopping components"):
                self._table.stop([process for process in processes if process not in containerd])
        if containerd or _kubelet_cgroups():
            with step("removing pods"):
                self._kill_pods()
                if any(process.running for process in containerd):
                    self._remove_containers()
                self._table.stop(containerd)
                self._kill_shims()
        self._clean(purge)

    def _kill_pods(self) -> None:
        def all_gone() -> bool:
            alive = [pid for cgroup in _kubelet_cgroups() for pid in _members(cgroup)]
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not alive

        wait_until(all_gone, 30, lambda: f"processes of pods do not end: see cgroup.procs below {_kubelet_cgroups()}")

    def _remove_containers(self) -> None:
        """Forgets the containers, so that the next start finds images and nothing else."""

        def none_left() -> bool:
            for kind, options in (("tasks", ["--force"]), ("containers", []), ("sandboxes", ["--force"])):
                table = ctr(self.layout, kind, "list").stdout.decode()
                if names := [row.split()[0] for row in table.splitlines()[1:] if row.strip()]:
                    ctr(self.layout, kind, "remove", *options, *names)
            return not ctr(self.layout, "containers", "list", "--quiet").stdout.strip()

        wait_until(none_left, 60, lambda: "containerd does not forget its containers: see its log")

    def _kill_shims(self) -> None:
        socket = str(self.layout.containerd_socket).encode()
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                words = command.read_bytes().split(b"\0")
                if words[0].endswith(b"containerd-shim-runc-v2") and socket in words:
                    os.kill(int(command.parent.name), signal.SIGKILL)

    def _clean(self, purge: bool) -> None:
        for mount in _mounts_below(self.layout.state):
            subprocess.run(["umount", "--lazy", mount], check=True)
        for cgroup in _kubelet_cgroups():
            _remove(cgroup)
        if shutil.which("nft") and shutil.which("ip"):
            remove_network()
        if not self.layout.state.exists():
            return
        keep = set() if purge else {self.layout.containerd, self.layout.logs}
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


def _kubelet_cgroups() -> list[Path]:
    """The control groups of pods, in every hierarchy, children before their parents."""
    tops = [*CGROUPS.glob("*/kubepods"), *CGROUPS.glob("kubepods")]
    return [Path(found) for top in tops for found, _, _ in os.walk(top, topdown=False)]


def _members(cgroup: Path) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError):
        yield from (int(line) for line in (cgroup / "cgroup.procs").read_text().split())


def _remove(cgroup: Path) -> None:
    """Remove a control group; one whose last process has just ended may be busy for a moment."""

    def gone() -> bool:
        try:
            cgroup.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    wait_until(gone, 30, lambda: f"{cgroup} stays busy although no process is in it")


def _mounts_below(directory: Path) -> list[str]:
    """Mount points below a directory, the innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in reversed(points) if Path(point).is_relative_to(directory)]
