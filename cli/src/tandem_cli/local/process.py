# SPDX-License-Identifier: Apache-2.0
"""A command with everything it starts, under a supervisor that ends with us."""

import asyncio
import contextlib
import os
import signal
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tandem_cli.local import supervisor
from tandem_cli.local.node import Node

MARK = "TANDEM_LOCAL_CONTAINER"


class Process:
    """A running command. Life: :meth:`start`, then :meth:`wait`; :meth:`terminate` asks, :meth:`kill` ends at once.

    When :meth:`wait` returns, nothing that the command started is left.
    """

    def __init__(self, supervising: asyncio.subprocess.Process, mark: str) -> None:
        self._supervising = supervising
        self._mark = mark

    @classmethod
    async def start(
        cls, node: Node, command: Sequence[str], environment: Mapping[str, str], directory: Path, log: Path
    ) -> "Process":
        """Start ``command`` in ``directory``, its output appended to ``log``.

        ``environment`` is added to the node's, and that to this process's own.
        """
        mark = uuid.uuid4().hex
        scratch = f"{node.scratch.memory}:{node.scratch.disk}"
        # Isolated and without site: starts in milliseconds and imports nothing that the command's environment names.
        starter = [node.python, "-I", "-S", supervisor.__file__, scratch]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            supervising = await asyncio.create_subprocess_exec(
                *starter,
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=directory,
                env={**_inherited(node), **node.environment, **environment, MARK: mark},
                pass_fds=node.keep_open,
                start_new_session=True,
            )
        return cls(supervising, mark)

    async def wait(self) -> int:
        """The exit status once the command and all it started have ended; 128 + n after signal n."""
        status = await self._supervising.wait()
        if status < 0:
            self._kill_marked()
        return status if status >= 0 else 128 - status

    def terminate(self) -> None:
        """Ask the command to end (SIGTERM)."""
        self._ask(supervisor.TERMINATE)

    def kill(self) -> None:
        """End it, and all it started, at once."""
        self._ask(supervisor.KILL)

    def _ask(self, what: bytes) -> None:
        assert self._supervising.stdin is not None
        self._supervising.stdin.write(what)

    def _kill_marked(self) -> None:
        """The supervisor itself was killed: what it watched over is known by its environment."""
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and f"{MARK}={self._mark}".encode() in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)


def _inherited(node: Node) -> dict[str, str]:
    """This process's own variables, less the contract's, with the interpreter's programs first on the path."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    return own | {"PATH": f"{Path(node.python).parent}:{own.get('PATH', os.defpath)}"}
