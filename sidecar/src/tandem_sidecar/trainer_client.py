# SPDX-License-Identifier: Apache-2.0
"""Commands to the trainer ranks of this pod, over their Unix sockets."""

import asyncio
from pathlib import Path

from tandem_api.errors import MemberFailed
from tandem_api.messages.trainer import TrainerCommand, TrainerReply

_LINE_LIMIT = 16 * 2**20


class TrainerClient:
    """All ranks of the pod as one: a command goes to each, since what they do is collective."""

    def __init__(self, run_dir: Path, ranks: int) -> None:
        self._sockets = [run_dir / f"trainer-{rank}.sock" for rank in range(ranks)]

    async def ask(self, command: TrainerCommand, timeout: float) -> TrainerReply:
        """Every rank's reply, as one: the first rank's, with the longest seconds of all.

        The trainer may still be starting, or be restarted by its agent: connecting is tried until the deadline.

        Raises:
            MemberFailed: a rank refused, died, or did not answer in time.
        """
        try:
            async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
                asking = [group.create_task(_ask(socket, command)) for socket in self._sockets]
        except TimeoutError:
            raise MemberFailed(f"the trainer did not answer {command.command!r} within {timeout:.0f} s") from None
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        replies = [task.result() for task in asking]
        longest = {
            part: max(reply.seconds.get(part, 0.0) for reply in replies) for reply in replies for part in reply.seconds
        }
        return replies[0].model_copy(update={"seconds": longest})


async def _ask(socket: Path, command: TrainerCommand) -> TrainerReply:
    reader, writer = await _connect(socket)
    try:
        writer.write(command.wire().encode() + b"\n")
        await writer.drain()
        line = await reader.readline()
    except OSError as error:
        raise MemberFailed(
            f"the trainer rank at {socket.name} went away during {command.command!r}: {error}"
        ) from error
    finally:
        writer.close()
    if not line:
        raise MemberFailed(f"the trainer rank at {socket.name} went away during {command.command!r}")
    reply = TrainerReply.model_validate_json(line)
    if reply.error is not None:
        raise MemberFailed(f"the trainer rank at {socket.name} refused {command.command!r}: {reply.error}")
    return reply


async def _connect(socket: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            return await asyncio.open_unix_connection(str(socket), limit=_LINE_LIMIT)
        except (FileNotFoundError, ConnectionRefusedError):
            await asyncio.sleep(0.1)
