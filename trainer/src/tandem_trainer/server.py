# SPDX-License-Identifier: Apache-2.0
"""The rank's end of ``trainer-<local rank>.sock``: one JSON line a command, one JSON line back, one at a time.

Commands run on the main thread, where torch's function modes and CUDA's current device are set; they are read on
threads of their own, so that one that takes the rank off the device is heard while another is under way.
"""

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import structlog
from pydantic import ValidationError

from tandem_api.messages.trainer import FinishRun, Offload, TrainerCommand, TrainerReply, trainer_command

log = structlog.get_logger()

_WAITING_CONNECTIONS = 8
_LONGEST_LINE = 1 << 20
INTERRUPTED = 75
"""Exit status of a rank that ended itself to leave the device."""


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

    Life cycle: it listens from the start, while the modules that carry commands out are still imported;
    :meth:`serve` then carries them out. What was done for a command of an epoch is remembered: the same command sent
    again, by a sidecar that lost the connection or was restarted, gets the same reply and nothing is done twice.
    Commands of an epoch that is over are refused.

    ``offload`` is answered at once by a rank that has done nothing yet, and ends a rank that is busy with an older
    epoch: its part may never end, since other ranks of its collective can be gone.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._commands: queue.SimpleQueue[tuple[socket.socket, TrainerCommand]] = queue.SimpleQueue()
        self._last: tuple[TrainerCommand, TrainerReply] | None = None
        self._lock = threading.Lock()
        self._fresh = True
        self._busy_with: int | None = None
        self._newest = 0
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def serve(self, obey: Callable[[TrainerCommand], TrainerReply], recoverable: tuple[type[Exception], ...]) -> None:
        """Carry out commands on this thread until ``finish`` is done.

        Args:
            obey: carries out a command; an exception in ``recoverable`` leaves the rank able to go on.

        Raises:
            RankFailed: a command failed in a way that this process does not survive; the sidecar was told.
        """
        finished = False
        while not finished:
            connection, command = self._commands.get()
            reply, failure = self._carry_out(command, obey, recoverable)
            _send(connection, reply)
            if failure:
                raise RankFailed(reply.error) from failure
            finished = isinstance(command, FinishRun) and reply.error is None

    def _carry_out(
        self,
        command: TrainerCommand,
        obey: Callable[[TrainerCommand], TrainerReply],
        recoverable: tuple[type[Exception], ...],
    ) -> tuple[TrainerReply, Exception | None]:
        if self._last and self._last[0] == command:
            return self._last[1], None
        if not self._begin(command):
            return TrainerReply(error=f"epoch {command.epoch} is over"), None
        try:
            reply = obey(command)
        except recoverable as error:
            log.warning("a command was refused", command=command.command, epoch=command.epoch, error=str(error))
            return TrainerReply(error=str(error)), None
        except Exception as error:
            log.error("a command failed", command=command.command, epoch=command.epoch, exc_info=error)
            return TrainerReply(error=f"{type(error).__name__}: {error}"), error
        finally:
            self._busy_with = None
        self._last = command, reply
        return reply, None

    def _begin(self, command: TrainerCommand) -> bool:
        """Whether the command is still wanted; if so, we are busy with it."""
        with self._lock:
            if command.epoch < self._newest:
                return False
            self._newest = command.epoch
            self._busy_with = command.epoch
            self._fresh = False
            return True

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._read, args=(connection,), name="read commands", daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as lines:
            while line := lines.readline(_LONGEST_LINE):
                self._take(connection, line)

    def _take(self, connection: socket.socket, line: bytes) -> None:
        try:
            command = trainer_command.validate_json(line)
        except ValidationError as error:
            _send(connection, TrainerReply(error=f"not a command of the trainer: {error}"))
            return
        if isinstance(command, Offload) and self._is_off(command):
            _send(connection, TrainerReply())
            return
        self._commands.put((connection, command))

    def _is_off(self, command: Offload) -> bool:
        """Whether this rank has never been on the device; one that is busy with something older ends here."""
        with self._lock:
            self._newest = max(self._newest, command.epoch)
            if self._busy_with is not None and self._busy_with < command.epoch:
                log.warning("a recovery has begun; the rank ends and starts anew", busy_with=self._busy_with)
                os._exit(INTERRUPTED)
            return self._fresh


def _send(connection: socket.socket, reply: TrainerReply) -> None:
    # Who asked may be gone; the reply is kept for whoever asks again.
    with contextlib.suppress(OSError):
        connection.sendall(reply.wire().encode() + b"\n")
