# SPDX-License-Identifier: Apache-2.0
"""A model that is named by its hub id is fetched once, by the hub's own client, from a small hub on this machine."""

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from tandem_api.errors import TryAgain, UserError
from tandem_api.hub import hugging_face_directory
from tandem_api.model_source import model_directory
from tandem_api.spec.model import HuggingFaceSource, ModelSpec

REVISION = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"vocab_size": 7}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": b"weights",
    "README.md": b"# tiny",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as its client asks for."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self._answer()

    def _answer(self) -> None:
        listing = {"id": "org/tiny", "sha": REVISION, "siblings": [{"rfilename": name} for name in FILES]}
        tree = [{"type": "file", "path": name, "size": len(body), "oid": _oid(body)} for name, body in FILES.items()]
        prefix = f"/org/tiny/resolve/{REVISION}/"
        if self.path.startswith(f"/api/models/org/tiny/tree/{REVISION}"):
            return self._send(200, json.dumps(tree).encode())
        if self.path.startswith("/api/models/org/tiny/revision/"):
            if self.path.rpartition("/")[2] in ("main", REVISION):
                return self._send(200, json.dumps(listing).encode())
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if self.path.startswith(prefix) and (body := FILES.get(self.path.removeprefix(prefix))) is not None:
            return self._send(200, body, {"ETag": f'"{_oid(body)}"', "X-Repo-Commit": REVISION})
        return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def _oid(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:40]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.asked = []
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def source(path: str = "org/tiny", revision: str | None = None) -> HuggingFaceSource:
    return HuggingFaceSource(path=path, revision=revision)


def test_config_and_tokenizer_come_from_the_hub_and_weights_for_those_who_want_them(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    directory = model_directory(ModelSpec.model_validate({"source": {"hf": {"path": "org/tiny"}}}), tmp_path)
    assert {file.name for file in directory.iterdir()} == {"config.json", "tokenizer.json", "chat_template.jinja"}
    assert (directory / "config.json").read_bytes() == FILES["config.json"]
    assert hugging_face_directory(source(), weights=True) == directory
    assert (directory / "model.safetensors").read_bytes() == b"weights"
    files = [path for path in Hub.asked if "/resolve/" in path]
    assert len(files) == len(set(files)) == 4


def test_what_was_fetched_once_does_when_the_hub_is_away(hub: ThreadingHTTPServer) -> None:
    directory = hugging_face_directory(source())
    hub.shutdown()
    hub.server_close()
    assert hugging_face_directory(source()) == directory


def test_a_hub_that_is_away_is_tried_again_later(hub: ThreadingHTTPServer) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(TryAgain, match="org/tiny is no directory in this container, and the hub cannot be reached"):
        hugging_face_directory(source())


@pytest.mark.parametrize(
    ("wrong", "where"),
    [(source("org/none"), "path"), (source("no/hub/id"), "path"), (source(revision="v9"), "revision")],
)
def test_what_the_hub_does_not_have_is_the_users_mistake(
    hub: ThreadingHTTPServer, wrong: HuggingFaceSource, where: str
) -> None:
    with pytest.raises(UserError, match=rf"spec\.model\.source\.hf\.{where}: "):
        hugging_face_directory(wrong)


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    assert hugging_face_directory(source(str(tmp_path))) == tmp_path
