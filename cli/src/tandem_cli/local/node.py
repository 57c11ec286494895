# SPDX-License-Identifier: Apache-2.0
"""What all pods of one run share: directories, addresses, claims, and who hears of containers that end."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tandem_cli.local.network import Subnet

_MEMORY = Path("/dev/shm")  # noqa: S108 - the machine's tmpfs, used as memory emptyDirs


@dataclass(frozen=True, slots=True)
class ContainerExit:
    """A container's process ended. ``seconds`` it ran; ``restarting``: it will be started again."""

    pod: str
    container: str
    status: int
    seconds: float
    restarts: int
    restarting: bool


class Scratch:
    """Two directories with short paths, one in memory: they hold Unix sockets, whose paths end at 107 bytes.

    Removed on exit; should this process be killed, the containers' supervisors remove them.
    """

    def __init__(self) -> None:
        memory = _MEMORY if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) else None
        self.memory = Path(tempfile.mkdtemp(prefix="tandem-", dir=memory))
        self.disk = Path(tempfile.mkdtemp(prefix="tandem-"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for directory in (self.memory, self.disk):
            shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Node:
    """This machine, as the one node of a run.

    ``claims``: directory of a PersistentVolumeClaim by its name; others lie in ``volumes``/<name>. ``environment`` is
    added to every container before its own. ``keep_open`` are descriptors that live as long as any container does.
    ``on_exit`` hears of every end of a container's process, ``on_change`` of every change of a pod's status.
    """

    subnet: Subnet
    scratch: Scratch
    logs: Path
    volumes: Path
    claims: Mapping[str, Path] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    keep_open: tuple[int, ...] = ()
    on_exit: Callable[[ContainerExit], None] = lambda _: None
    on_change: Callable[[], None] = lambda: None
    python: str = sys.executable

    def claim(self, name: str) -> Path:
        """The directory of a claim, made if it is missing."""
        directory = self.claims.get(name, self.volumes / name)
        directory.mkdir(parents=True, exist_ok=True)
        return directory
