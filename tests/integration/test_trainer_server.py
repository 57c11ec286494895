# SPDX-License-Identifier: Apache-2.0
"""The command socket of a trainer rank: what is answered, what is remembered, and when the rank gives up."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import DEADLINE, until

from tandem_api.messages.trainer import Checkpoint, FinishRun, Offload, TrainerCommand, TrainerReply
from tandem_trainer.server import INTERRUPTED, CommandRefused, RankFailed, Server, listen

Obey = Callable[[TrainerCommand], TrainerReply]
FINISH = FinishRun(epoch=99, export=False)


class Rank:
    """Counts what it did; refuses iteration 7, and breaks at iteration 8."""

    def __init__(self) -> None:
        self.done: list[TrainerCommand] = []

    def obey(self, command: TrainerCommand) -> TrainerReply:
        if isinstance(command, Checkpoint) and command.iteration == 7:
            raise CommandRefused("not iteration 7")
        if isinstance(command, Checkpoint) and command.iteration == 8:
            raise ZeroDivisionError("broken")
        self.done.append(command)
        return TrainerReply(path=f"{len(self.done)}")


@contextmanager
def serving(path: Path, rank: Rank) -> Iterator[list[BaseException]]:
    """A server on a thread; what ended it, if anything did, is in the list once the block is left."""
    ended: list[BaseException] = []
    server = Server(listen(path))

    def serve() -> None:
        try:
            server.serve(rank.obey, (CommandRefused,))
        except RankFailed as error:
            ended.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    yield ended
    thread.join(DEADLINE)
    assert not thread.is_alive()


def send(path: Path, line: bytes) -> TrainerReply:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(line + b"\n")
        return TrainerReply.model_validate_json(connection.makefile("rb").readline())


def ask(path: Path, command: TrainerCommand) -> TrainerReply:
    return send(path, command.wire().encode())


def test_a_command_is_done_once_however_often_it_is_sent(tmp_path: Path) -> None:
    rank, path = Rank(), tmp_path / "s"
    with serving(path, rank):
        replies = [ask(path, Checkpoint(epoch=1, iteration=1)) for _ in range(3)]
        again = ask(path, Checkpoint(epoch=2, iteration=1))
        ask(path, FINISH)
    assert [reply.path for reply in (*replies, again)] == ["1", "1", "1", "2"]


def test_a_reply_that_nobody_waited_for_is_given_to_who_asks_again(tmp_path: Path) -> None:
    rank, path = Rank(), tmp_path / "s"
    with serving(path, rank):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(Checkpoint(epoch=1, iteration=1).wire().encode() + b"\n")
        assert ask(path, Checkpoint(epoch=1, iteration=1)).path == "1"
        ask(path, FINISH)
    assert len(rank.done) == 2


def test_several_commands_may_come_over_one_connection(tmp_path: Path) -> None:
    rank, path = Rank(), tmp_path / "s"
    with serving(path, rank), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        lines = connection.makefile("rb")
        for command in (Checkpoint(epoch=1, iteration=1), Checkpoint(epoch=2, iteration=2), FINISH):
            connection.sendall(command.wire().encode() + b"\n")
            assert TrainerReply.model_validate_json(lines.readline()).error is None
    assert [command.epoch for command in rank.done] == [1, 2, 99]


@pytest.mark.parametrize("line", [b"", b"not json", b'{"command": "dance"}', b'{"command": "step"}'])
def test_what_is_no_command_is_answered_with_an_error(tmp_path: Path, line: bytes) -> None:
    rank, path = Rank(), tmp_path / "s"
    with serving(path, rank):
        assert "not a command" in (send(path, line).error or "")
        ask(path, FINISH)
    assert rank.done == [FINISH]


def test_a_refused_command_may_be_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serving(path, Rank()) as ended:
        assert ask(path, Checkpoint(epoch=1, iteration=7)).error == "not iteration 7"
        assert ask(path, Checkpoint(epoch=1, iteration=6)).error is None
        ask(path, FINISH)
    assert not ended


def test_a_command_that_breaks_is_told_and_ends_the_rank(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serving(path, Rank()) as ended:
        assert ask(path, Checkpoint(epoch=1, iteration=8)).error == "ZeroDivisionError: broken"
    assert isinstance(ended[0], RankFailed)
    assert isinstance(ended[0].__cause__, ZeroDivisionError)


def test_a_rank_that_has_done_nothing_is_off_the_device_before_it_serves(tmp_path: Path) -> None:
    path = tmp_path / "s"
    Server(listen(path))
    assert ask(path, Offload(epoch=1)).error is None


def test_an_idle_rank_leaves_the_device_and_takes_commands_of_the_new_epoch(tmp_path: Path) -> None:
    rank, path = Rank(), tmp_path / "s"
    with serving(path, rank):
        ask(path, Checkpoint(epoch=1, iteration=1))
        assert ask(path, Offload(epoch=2)).error is None
        assert ask(path, Checkpoint(epoch=1, iteration=2)).error == "epoch 1 is over"
        ask(path, FINISH)
    assert [command.command for command in rank.done] == ["checkpoint", "offload", "finish"]


BUSY = """
import sys, time
from pathlib import Path
from tandem_api.messages.trainer import TrainerReply
from tandem_trainer.server import Server, listen

def obey(command):
    Path(sys.argv[2]).touch()
    time.sleep(600)

Server(listen(Path(sys.argv[1]))).serve(obey, ())
"""


def test_a_rank_that_is_busy_with_an_older_epoch_ends_when_a_recovery_begins(tmp_path: Path) -> None:
    path, begun = tmp_path / "s", tmp_path / "begun"
    process = subprocess.Popen([sys.executable, "-c", BUSY, path, begun])
    try:
        until(path.exists, 3 * DEADLINE, "the rank's socket")
        with socket.socket(socket.AF_UNIX) as asking, socket.socket(socket.AF_UNIX) as offloading:
            # The socket is there a moment before it is listened to.
            until(lambda: asking.connect_ex(str(path)) == 0, DEADLINE, "the rank listens")
            asking.sendall(Checkpoint(epoch=1, iteration=1).wire().encode() + b"\n")
            until(begun.exists, DEADLINE, "the command's begin")
            offloading.connect(str(path))
            offloading.sendall(Offload(epoch=2).wire().encode() + b"\n")
            assert offloading.makefile("rb").readline() == b""
        assert process.wait(DEADLINE) == INTERRUPTED
    finally:
        process.kill()
        process.wait()


def test_who_connects_before_the_rank_serves_waits_for_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = listen(path)
    with socket.socket(socket.AF_UNIX) as early:
        early.connect(str(path))
        early.sendall(FINISH.wire().encode() + b"\n")
        Server(listener).serve(Rank().obey, ())
        assert TrainerReply.model_validate_json(early.makefile("rb").readline()).path == "1"
