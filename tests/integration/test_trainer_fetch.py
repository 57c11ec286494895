# SPDX-License-Identifier: Apache-2.0
"""Batches over real HTTP: refusals, an orchestrator that is away for a while, answers that are too long or cut."""

import socket
import threading
from collections.abc import Iterator

import pytest
from trainer_world import TOKEN, Orchestrator

from tandem_trainer.fetch import FetchFailed, fetch

MOST = 1 << 20
LONG = 60.0


@pytest.fixture
def orchestrator() -> Iterator[Orchestrator]:
    with Orchestrator({"/v1/batches/0": b"x" * 5000}).serving() as serving:
        yield serving


def test_the_body_comes_whole(orchestrator: Orchestrator) -> None:
    assert fetch(f"{orchestrator.url}/v1/batches/0", TOKEN, MOST, LONG) == b"x" * 5000


@pytest.mark.parametrize(("path", "token", "code"), [("batches/0", "another", "401"), ("batches/1", TOKEN, "404")])
def test_a_refusal_is_final(orchestrator: Orchestrator, path: str, token: str, code: str) -> None:
    with pytest.raises(FetchFailed, match=code):
        fetch(f"{orchestrator.url}/v1/{path}", token, MOST, LONG)
    assert len(orchestrator.requests) == 1


def test_a_refusal_is_told_in_the_words_of_the_orchestrator() -> None:
    sentence = b"there is no batch of iteration 1"
    refusal = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s" % (len(sentence), sentence)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=_answer_once, args=(listener, refusal))
        serving.start()
        with pytest.raises(FetchFailed, match=f"404 {sentence.decode()}"):
            fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/", TOKEN, MOST, LONG)
        serving.join()


def test_a_body_over_the_limit_is_not_read_to_its_end(orchestrator: Orchestrator) -> None:
    with pytest.raises(FetchFailed, match="4000 bytes"):
        fetch(f"{orchestrator.url}/v1/batches/0", TOKEN, 4000, LONG)


def _answer_once(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(answer)


WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole"


@pytest.mark.parametrize(
    "broken",
    [
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwh",
        b"",
    ],
    ids=["unavailable", "cut short", "closed"],
)
def test_what_fails_for_now_is_tried_again(broken: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            _answer_once(listener, broken)
            _answer_once(listener, WHOLE)

        serving = threading.Thread(target=serve)
        serving.start()
        assert fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/", TOKEN, MOST, LONG) == b"whole"
        serving.join()


def test_an_orchestrator_that_stays_away_is_given_up_at_the_deadline() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        with pytest.raises(FetchFailed, match="within 1 s"):
            fetch(f"http://127.0.0.1:{deaf.getsockname()[1]}/", TOKEN, MOST, 1)


def test_an_orchestrator_that_hangs_is_given_up_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(FetchFailed, match="within 1 s"):
        fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/", TOKEN, MOST, 1)
