# SPDX-License-Identifier: Apache-2.0
"""Deeds that take root on this machine: ``python -m tandem_cli.chaos.confinement ORDER``.

Processes are put into a control group for as long as the fault lasts: into one with little memory, in which the kernel
then kills, or into one by which nftables knows their packets. Everything goes back when the deed ends.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tandem_cli.chaos.deeds import DEEDS, Deed, first_victims, main, until_one_is_killed
from tandem_cli.chaos.targets import Process, Refused, Targets, open_files

_GROUPS = Path("/sys/fs/cgroup")
_LITTLE_MEMORY = 32 * 2**20
_TRIES = 100
_LISTENING = "0A"
_IPV4_DIGITS = 8
_MAPPED = "0000000000000000FFFF0000"

# Packets of connections that were there before are known by their four ends, those of new ones by the group of the
# process that opens them. A pod's own processes go on talking to each other at the pod's address.
_RULES = """
table inet {name} {{
  set cut {{ type ipv4_addr . inet_service . ipv4_addr . inet_service; {elements} }}
  chain output {{
    type filter hook output priority -10; policy accept;
    ip saddr . tcp sport . ip daddr . tcp dport @cut counter drop
    tcp flags & (syn | ack) != syn accept
    socket cgroupv2 level {level} "{group}" ip daddr {address} accept
    socket cgroupv2 level {level} "{group}" counter drop
    ip daddr {address} counter drop
  }}
}}
"""


def memory_groups() -> Path:
    """Where groups with a limit of memory can be made.

    Raises:
        Refused: nowhere.
    """
    with _trial(_memory_root()) as group:
        _limit_file(group)
    return _memory_root()


def _memory_root() -> Path:
    return _GROUPS / "memory" if (_GROUPS / "memory").is_dir() else _GROUPS


def _limit_file(group: Path) -> Path:
    found = [group / name for name in ("memory.max", "memory.limit_in_bytes") if (group / name).exists()]
    if not found:
        raise Refused(f"{group} has no limit of memory: the memory controller is not on for {group.parent}")
    return found[0]


def out_of_memory(targets: Targets) -> Deed:
    """The kernel's own kill: the targets are put into a group with little memory, in which something takes more."""
    group = memory_groups() / f"tandem-chaos-{os.getpid()}"
    targets.demand()
    with _grouped(targets.all, group) as limited, first_victims(targets.all):
        _limit_file(limited).write_text(str(_LITTLE_MEMORY))
        for without_swap, limit in (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", _LITTLE_MEMORY)):
            with contextlib.suppress(OSError):  # a kernel without accounting of swap has no such file
                (limited / without_swap).write_text(str(limit))
        for _ in range(_TRIES):
            yield from until_one_is_killed(targets, 2 * _LITTLE_MEMORY, lambda: _join(os.getpid(), limited))
            if not targets.whole:
                return
    raise Refused("the kernel did not kill it")


def partition(targets: Targets) -> Deed:
    """Cut a pod's processes off from everything but each other."""
    check_partition()
    targets.demand()
    address = targets.variable("TANDEM_POD_IP") or "127.0.0.1"
    name = f"tandem-chaos-{os.getpid()}"
    group = _unified() / name
    with _grouped(targets.all, group):
        rules = _RULES.format(
            name=name, level=1, group=group.relative_to(_GROUPS), address=address, elements=_cut(targets.all)
        )
        try:
            _nft(rules)
            while True:
                yield 0.5
                for process in _newcomers(targets):
                    _join(process.pid, group)
        finally:
            subprocess.run(["nft", "delete", "table", "inet", name], check=False, capture_output=True)


def check_partition() -> None:
    """Raise Refused if this machine cannot cut processes off."""
    if os.geteuid() != 0 or shutil.which("nft") is None:
        raise Refused("cutting processes off takes root and the program nft (Debian: nftables)")
    name = f"tandem-chaos-{os.getpid()}"
    with _trial(_unified()) as group:
        _nft(
            _RULES.format(name=name, level=1, group=group.relative_to(_GROUPS), address="127.0.0.2", elements="")
            + f"delete table inet {name}\n"
        )


def _nft(rules: str) -> None:
    done = subprocess.run(["nft", "-f", "-"], input=rules, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise Refused(f"nft does not take the rules: {done.stderr.strip().splitlines()[0]}")


def _unified() -> Path:
    """Root of the groups of version 2, which nftables knows."""
    for root in (_GROUPS, _GROUPS / "unified"):
        if (root / "cgroup.controllers").exists():
            return root
    raise Refused("this machine has no control groups of version 2, by which nftables knows processes")


def _newcomers(targets: Targets) -> Iterator[Process]:
    """Processes of the targets' that started meanwhile, such as a container that was started again."""
    known = {process.pid for process in targets.all}
    targets.find()
    return (process for process in targets.all if process.pid not in known)


def _cut(processes: Iterable[Process]) -> str:
    """Ends of the connections that lead out of the processes, in both directions, as elements of a set."""
    sockets = {leads_to for process in processes for _, leads_to in open_files(process.pid)}
    files = [Path("/proc/net") / name for name in ("tcp", "tcp6")]
    rows = [line.split() for file in files if file.exists() for line in file.read_text().splitlines()[1:]]
    mine = [row for row in rows if f"socket:[{row[9]}]" in sockets and row[3] != _LISTENING]
    inside = {(_end(row[1]), _end(row[2])) for row in mine if _is_ipv4(row[1])}
    leading_out = [ends for ends in inside if (ends[1], ends[0]) not in inside]
    ends = {pair for local, remote in leading_out for pair in ((local, remote), (remote, local))}
    elements = ", ".join(f"{one} . {other}" for one, other in sorted(ends))
    return f"elements = {{ {elements} }}" if elements else ""


def _is_ipv4(text: str) -> bool:
    """Whether packets of a socket with this address are IPv4's: sockets of IPv6 may stand for such an address."""
    address = text.partition(":")[0]
    return len(address) == _IPV4_DIGITS or address.startswith(_MAPPED)


def _end(text: str) -> str:
    """``0100007F:1F90``, as /proc/net/tcp has it -> ``127.0.0.1 . 8080``."""
    address, port = text.split(":")
    return ".".join(str(byte) for byte in reversed(bytes.fromhex(address[-_IPV4_DIGITS:]))) + f" . {int(port, 16)}"


@contextlib.contextmanager
def _trial(root: Path) -> Iterator[Path]:
    """A group, to see whether one can be made there."""
    group = root / f"tandem-chaos-try-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise Refused(f"no control group can be made in {root}: {error.strerror}; it takes root") from error
    try:
        yield group
    finally:
        group.rmdir()


@contextlib.contextmanager
def _grouped(processes: Iterable[Process], group: Path) -> Iterator[Path]:
    """Have processes in a new group; what is left of them, and of what they started, goes back to where it was."""
    group.mkdir()
    home = None
    try:
        for process in processes:
            if process.alive:
                home = home or _place(process.pid, group)
                _join(process.pid, group)
        yield group
    finally:
        for limit in ("memory.max", "memory.memsw.limit_in_bytes", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError):
                (group / limit).write_text("max" if limit == "memory.max" else "-1")
        _dissolve(group, home or group.parent)


def _dissolve(group: Path, home: Path) -> None:
    for _ in range(_TRIES):
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                _join(int(pid), home)
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.05)  # a process that is ending stays in its group until it is gone
    raise Refused(f"{group} cannot be removed")


def _join(pid: int, group: Path) -> None:
    (group / "cgroup.procs").write_text(str(pid))


def _place(pid: int, like: Path) -> Path:
    """The group of a process in the hierarchy that ``like`` belongs to."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        root = _GROUPS / "memory" if "memory" in controllers.split(",") else _unified() if number == "0" else None
        if root is not None and root == like.parent:
            return root / path.lstrip("/")
    return like.parent


CONFINED: dict[str, Callable[[Targets], Deed]] = {"OutOfMemory": out_of_memory, "Partition": partition}

if __name__ == "__main__":
    main(json.loads(sys.argv[1]), DEEDS | CONFINED)
