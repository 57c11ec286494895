# SPDX-License-Identifier: Apache-2.0
"""A view of the machine with nothing in it: namespaces that an unprivileged process may make, where it may."""

import os
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tandem_orchestrator.sandbox import kernel

_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000
_READ_ONLY, _NO_SETUID, _NO_DEVICES, _NO_PROGRAMS = 1, 2, 4, 8
_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

INNER_USER = 65534
"""Who a program is inside: nobody."""
WORK = "/work" if Path(sys.prefix).is_relative_to("/tmp") else "/tmp"  # noqa: S108
"""Where a program may write, in a root that only it sees; elsewhere if that would cover its own interpreter."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_LINKS = ("/lib", "/lib64", "/lib32", "/libx32", "/bin")


def refusal(trial: Callable[[], None]) -> str | None:
    """Why ``trial`` fails, found out in a process of its own; ``None`` if it does not."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            trial()
        except OSError as error:
            os.write(writing, str(error).encode()[:4096])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        reason = answer.read().decode()
    os.waitpid(child, 0)
    return reason or None


def enter(root: Path, visible: Sequence[str]) -> None:
    """Leave the machine's users, mounts, network, IPC and names; see only ``visible``, read-only.

    ``root`` is an empty directory to build the view on.

    Raises:
        OSError: the machine does not allow it; the process is in no usable state then.
    """
    user, group = os.geteuid(), os.getegid()
    os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS | os.CLONE_NEWNET | os.CLONE_NEWIPC | os.CLONE_NEWUTS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{INNER_USER} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{INNER_USER} {group} 1")
    kernel.mount("none", "/", "", _RECURSIVE | _PRIVATE)
    kernel.mount("tmpfs", str(root), "tmpfs", _NO_SETUID, "size=1m,mode=755")
    for path in visible:
        _show(root, path)
    (root / WORK[1:]).mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chdir(root)
    kernel.call("pivot_root", b".", b".")
    kernel.call("umount2", b".", _DETACH)
    os.chdir("/")
    attributes = struct.pack("=QQQQ", _READ_ONLY | _NO_SETUID, 0, 0, 0)
    kernel.call("mount_setattr", _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, len(attributes))


def enter_own() -> None:
    """Mounts of this process's own, and a new process namespace for its next child."""
    os.unshare(os.CLONE_NEWPID | os.CLONE_NEWNS)


def mount_work(size: int, entries: int) -> None:
    """An empty, bounded directory in memory at ``WORK``; ``size`` in bytes. It goes when its last process goes."""
    flags = _NO_SETUID | _NO_DEVICES | _NO_PROGRAMS
    kernel.mount("tmpfs", WORK, "tmpfs", flags, f"size={size},nr_inodes={entries + 1},mode=700")


def _show(root: Path, path: str) -> None:
    source, target = Path(path), root / path[1:]
    if not source.exists() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink() and path in _LINKS:
        target.symlink_to(source.readlink())
        return
    if source.is_dir():
        target.mkdir()
    else:
        target.touch()
    kernel.mount(str(source), str(target), "", _BIND | _RECURSIVE)
