# SPDX-License-Identifier: Apache-2.0
"""Commands to the trainer ranks of this pod, over their Unix sockets."""

import asyncio
from pathlib import Path

import structlog

from tandem_api.errors import MemberFailed
from tandem_api.messages.trainer import Load, Offload, TrainerCommand, TrainerReply

log = structlog.get_logger()

_LINE_LIMIT = 16 * 2**20
_LOAD_ATTEMPTS = 4
"""The agents of several pods start their ranks anew one after the other; a rank may be asked just before its turn."""


class TrainerGone(MemberFailed):
    """A rank ended while it was asked; its agent starts it anew, with nothing loaded."""


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

    async def load(self, command: Load, timeout: float) -> TrainerReply:
        """Ask for a load, and again of ranks that were started anew meanwhile.

        Raises:
            MemberFailed: as :meth:`ask`, or the ranks do not survive their load.
        """
        for attempt in range(1, _LOAD_ATTEMPTS):
            try:
                return await self.ask(command, timeout)
            except TrainerGone as error:
                log.warning("the trainer was started anew; it is asked again", attempt=attempt, error=str(error))
        return await self.ask(command, timeout)

    async def let_go(self, command: Offload, timeout: float) -> None:
        """See every rank off the device. A rank that ends, or that is not there, has left it.

        Raises:
            MemberFailed: a rank refused, or did not answer in time.
        """
        try:
            async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
                for socket in self._sockets:
                    group.create_task(_let_go(socket, command))
        except TimeoutError:
            raise MemberFailed(f"the trainer did not leave the device within {timeout:.0f} s") from None
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None


async def _let_go(socket: Path, command: Offload) -> None:
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket), limit=_LINE_LIMIT)
    except OSError as error:
        log.info("no trainer rank is on the device", rank=socket.name, error=str(error))
        return
    try:
        await _converse(socket, command, reader, writer)
    except TrainerGone as error:
        log.info("the trainer rank ended and is off the device", rank=socket.name, error=str(error))


async def _ask(socket: Path, command: TrainerCommand) -> TrainerReply:
    return await _converse(socket, command, *await _connect(socket))


async def _converse(
    socket: Path, command: TrainerCommand, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> TrainerReply:
    gone = f"the trainer rank at {socket.name} went away during {command.command!r}"
    try:
        writer.write(command.wire().encode() + b"\n")
        await writer.drain()
        line = await reader.readline()
    except OSError as error:
        raise TrainerGone(f"{gone}: {error}") from error
    finally:
        writer.close()
    if not line:
        raise TrainerGone(gone)
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
