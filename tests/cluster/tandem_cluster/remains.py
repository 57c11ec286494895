# SPDX-License-Identifier: Apache-2.0
"""What a node has in the kernel, which its processes do not take with them when they end."""

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tandem_cluster.components import ctr
from tandem_cluster.layout import Node
from tandem_cluster.processes import wait_until

CGROUPS = Path("/sys/fs/cgroup")


def create_cgroups(node: Node) -> None:
    """Makes the control groups below which a kubelet makes those of its pods."""
    for hierarchy in _hierarchies():
        (hierarchy / node.cgroup).mkdir(exist_ok=True)


def cgroups(node: Node) -> list[Path]:
    """The control groups of its pods, in every hierarchy, children before their parents."""
    tops = [hierarchy / (node.cgroup or "kubepods") for hierarchy in _hierarchies()]
    return [Path(found) for top in tops for found, _, _ in os.walk(top, topdown=False)]


def _hierarchies() -> list[Path]:
    unified = (CGROUPS / "cgroup.controllers").exists()
    return [CGROUPS] if unified else [found.parent for found in CGROUPS.glob("*/cgroup.procs")]


def kill_pods(node: Node) -> None:
    """Ends the processes of its pods, without a word to anyone."""

    def all_gone() -> bool:
        alive = [pid for cgroup in cgroups(node) for pid in _members(cgroup)]
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not alive

    wait_until(all_gone, 30, lambda: f"processes of pods do not end: see cgroup.procs below {cgroups(node)}")


def _members(cgroup: Path) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError):
        yield from (int(line) for line in (cgroup / "cgroup.procs").read_text().split())


def remove_containers(node: Node) -> None:
    """Forgets the containers, so that the next start finds images and nothing else."""

    def none_left() -> bool:
        for kind, options in (("tasks", ["--force"]), ("containers", []), ("sandboxes", ["--force"])):
            table = ctr(node, kind, "list").stdout.decode()
            if names := [row.split()[0] for row in table.splitlines()[1:] if row.strip()]:
                ctr(node, kind, "remove", *options, *names)
        return not ctr(node, "containers", "list", "--quiet").stdout.strip()

    wait_until(none_left, 60, lambda: "containerd does not forget its containers: see its log")


def kill_shims(node: Node) -> None:
    """Ends the processes by which containerd holds its containers."""
    socket = str(node.containerd_socket).encode()
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            words = command.read_bytes().split(b"\0")
            if words[0].endswith(b"containerd-shim-runc-v2") and socket in words:
                os.kill(int(command.parent.name), signal.SIGKILL)


def cut_network(node: Node) -> None:
    """Takes the cables out of its pods: what ends from now on cannot tell its peers, as the kernel does for it."""
    for namespace in mounts_below(node.containerd_run):
        if Path(namespace).parent.name == "netns":
            # A pod that is about to end may have no cable any more.
            subprocess.run(["nsenter", f"--net={namespace}", "ip", "link", "set", "eth0", "down"], check=False)


def remove_cgroups(node: Node) -> None:
    for cgroup in cgroups(node):
        _remove(cgroup)


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


def unmount_below(directory: Path) -> None:
    for mount in mounts_below(directory):
        subprocess.run(["umount", "--lazy", mount], check=True)


def mounts_below(directory: Path) -> list[str]:
    """Mount points below a directory, the innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in reversed(points) if Path(point).is_relative_to(directory)]
