# SPDX-License-Identifier: Apache-2.0
"""Landlock: a process gives up files, ports and signals for itself and its children (Linux 5.13 and later)."""

import errno
import os
import struct
from collections.abc import Iterable
from enum import IntFlag

from tandem_orchestrator.sandbox import kernel

_VERSION = 1
_PATH_BENEATH = 1
_SCOPES_ABI = 6
_PORTS_ABI = 4


class Right(IntFlag):
    """Rights to files, with the bits of ``linux/landlock.h``."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    REFER = 1 << 13
    TRUNCATE = 1 << 14


READ = Right.READ_FILE | Right.READ_DIR
WRITE_DEVICE = Right.READ_FILE | Right.WRITE_FILE | Right.TRUNCATE
FLAT = READ | Right.WRITE_FILE | Right.MAKE_REG | Right.TRUNCATE
"""Files that can be made and written, but neither hidden (removed while open) nor nested."""
FREE = FLAT | Right.REMOVE_FILE | Right.REMOVE_DIR | Right.MAKE_DIR | Right.REFER

_RIGHTS_BY_ABI = ((5, 16), (3, 15), (2, 14), (1, 13))


def abi() -> int:
    """The version of Landlock that the kernel has; 0 without."""
    try:
        return kernel.call("landlock_create_ruleset", None, 0, _VERSION)
    except OSError:
        return 0


def restrict(rules: Iterable[tuple[str, Right]]) -> None:
    """Deny this process all but ``rules``: rights to a path and what is below; paths that do not exist are passed over.

    Since ABI 4 no TCP port, since ABI 6 no signal to a process outside, is allowed either.

    Raises:
        OSError: the kernel has no Landlock.
    """
    version = abi()
    handled = next((1 << bits) - 1 for least, bits in _RIGHTS_BY_ABI if version >= least) if version else 0
    if not handled:
        raise OSError(errno.ENOSYS, "the kernel has no Landlock")
    attributes = struct.pack("=QQQ", handled, 3 if version >= _PORTS_ABI else 0, 3 if version >= _SCOPES_ABI else 0)
    size = 24 if version >= _SCOPES_ABI else 16 if version >= _PORTS_ABI else 8
    ruleset = kernel.call("landlock_create_ruleset", attributes, size, 0)
    for path, rights in rules:
        _allow(ruleset, path, rights & handled)
    kernel.call("landlock_restrict_self", ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    kernel.call("landlock_add_rule", ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    os.close(place)
