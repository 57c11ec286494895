# SPDX-License-Identifier: Apache-2.0
"""Becomes what a process is in a pod under the restricted policy, then runs a program.

``python restricted_pod.py PROFILE PROGRAM...``: user 65532, no capabilities, no new privileges, a read-only root with
fresh /tmp and /dev/shm in memory and, if PROFILE is ``default-profile``, the calls denied that containerd's default
seccomp profile denies to such a process: new namespaces and mounts. One who is not root becomes no other user.
"""

import ctypes
import os
import struct
import subprocess
import sys
from pathlib import Path

from tandem_orchestrator.sandbox import kernel

ROOT = Path(__file__).resolve().parents[1]
USER = 65532
_PRIVATE, _BIND, _RECURSIVE, _READ_ONLY = 0x40000, 0x1000, 0x4000, 1
_AT_FDCWD = -100
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
_CLONE3 = 435


def become(profile: str) -> None:
    if os.geteuid() == 0:
        os.unshare(os.CLONE_NEWNS)
        kernel.mount("none", "/", "", _RECURSIVE | _PRIVATE)
        needed = {path: os.open(path, os.O_PATH) for path in (Path(sys.base_prefix), ROOT)}
        for place in ("/tmp", "/dev/shm"):
            kernel.mount("tmpfs", place, "tmpfs", 0, "size=64m,mode=1777")
        for closed in {above for path in needed for above in _closed_above(path)}:
            kernel.mount("tmpfs", str(closed), "tmpfs", 0, "size=1m,mode=755")
        for path, directory in needed.items():
            _show(path, directory)
        _read_only("/")
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    kernel.drop_capabilities()
    if profile == "default-profile":
        _deny(
            "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "mount_setattr", "move_mount", "open_tree"
        )


def _closed_above(path: Path) -> list[Path]:
    """The topmost directory above ``path`` that is its owner's alone, if there is one."""
    return [above for above in reversed(path.parents) if above.exists() and not above.stat().st_mode & 1][:1]


def _show(path: Path, directory: int) -> None:
    """Have the open ``directory`` at ``path`` again, if something was mounted over it."""
    if not path.exists():
        path.mkdir(parents=True)
        kernel.mount(f"/proc/self/fd/{directory}", str(path), "", _BIND | _RECURSIVE)


def _read_only(path: str) -> None:
    """This mount alone: /dev/shm and /tmp stay as they are."""
    attributes = struct.pack("=QQQQ", _READ_ONLY, 0, 0, 0)
    kernel.call("mount_setattr", _AT_FDCWD, path.encode(), 0, attributes, len(attributes))


def _deny(*names: str) -> None:
    steps = [(_LOAD, 0, 0, 0)]
    for name in names:
        steps += [(_EQUAL, 0, 1, kernel.NUMBERS[name]), (_RETURN, 0, 0, _EPERM)]
    steps += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ENOSYS), (_EQUAL, 0, 3, kernel.NUMBERS["clone"])]
    steps += [(_LOAD, 0, 0, 16), (_ANY_BIT, 0, 1, 0x7E020000), (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    kernel.call("seccomp", 1, 0, struct.pack("@HxxxxxxP", len(steps), ctypes.addressof(buffer)))


if __name__ == "__main__":
    become(sys.argv[1])
    sys.exit(subprocess.run(sys.argv[2:], check=False, cwd="/", env={"PYTHONDONTWRITEBYTECODE": "1"}).returncode)
