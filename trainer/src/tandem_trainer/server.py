# SPDX-License-Identifier: Apache-2.0
"""The rank's end of ``trainer-<local rank>.sock``: one JSON line a command, one JSON line back, one at a time.

Commands run on the main thread, where torch's function modes and CUDA's current device are set.
"""

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import structlog
from pydantic import ValidationError

from tandem_api.messages.trainer import FinishRun, TrainerCommand, TrainerReply, trainer_command

log = structlog.get_logger()

_WAITING_CONNECTIONS = 8
_LONGEST_LINE = 1 << 20


class CommandRefused(RuntimeError):
    """The command does not fit what this rank holds; nothing was done, and another command may fit."""


class RankFailed(RuntimeError):
    """A command failed half way: this rank's state is unknown and it must be started anew."""


def listen(path: Path) -> socket.socket:
    """Take over the socket, so that whoever connects from now on waits instead of being refused."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(_WAITING_CONNECTIONS)
    return listener


class Server:
    """Answers commands until ``finish``.

    What was done for a command of an epoch is remembered: the same command sent again, by a sidecar that lost the
    connection or was restarted, gets the same reply and nothing is done twice.

    Args:
        obey: carries out a command; an exception in ``recoverable`` leaves the rank able to go on.
    """

    def __init__(
        self,
        listener: socket.socket,
        obey: Callable[[TrainerCommand], TrainerReply],
        recoverable: tuple[type[Exception], ...],
    ) -> None:
        self._listener = listener
        self._obey = obey
        self._recoverable = recoverable
        self._last: tuple[TrainerCommand, TrainerReply] | None = None
        self._finished = False

    def serve(self) -> None:
        """Answer until ``finish`` is done.

        Raises:
            RankFailed: a command failed in a way that this process does not survive; the sidecar was told.
        """
        while not self._finished:
            connection, _ = self._listener.accept()
            with connection, contextlib.suppress(ConnectionError):
                self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            while not self._finished and (line := lines.readline(_LONGEST_LINE)):
                reply, failure = self._answer(line)
                with contextlib.suppress(ConnectionError):
                    connection.sendall(reply.wire().encode() + b"\n")
                if failure:
                    raise RankFailed(reply.error) from failure

    def _answer(self, line: bytes) -> tuple[TrainerReply, Exception | None]:
        try:
            command = trainer_command.validate_json(line)
        except ValidationError as error:
            return TrainerReply(error=f"not a command of the trainer: {error}"), None
        if self._last and self._last[0] == command:
            return self._last[1], None
        try:
            reply = self._obey(command)
        except self._recoverable as error:
            log.warning("a command was refused", command=command.command, epoch=command.epoch, error=str(error))
            return TrainerReply(error=str(error)), None
        except Exception as error:
            log.error("a command failed", command=command.command, epoch=command.epoch, exc_info=error)
            return TrainerReply(error=f"{type(error).__name__}: {error}"), error
        self._last = command, reply
        self._finished = isinstance(command, FinishRun)
        return reply, None
