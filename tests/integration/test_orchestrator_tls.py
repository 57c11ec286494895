# SPDX-License-Identifier: Apache-2.0
"""The orchestrator's API over TLS, with certificates as the operator draws them and both clients of it."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import pytest
from aiohttp import web
from api_tls import certificate_alone, secret
from etcd_server import etcd_server
from orchestrator_processes import SOON, Orchestrators
from orchestrator_world import make_job, prompt_file
from waiting import eventually

from tandem_api import tls
from tandem_api.environment import ORCHESTRATOR_PORT
from tandem_api.errors import TryAgain
from tandem_api.messages.work import LeaseRequest
from tandem_orchestrator.batches import Body
from tandem_orchestrator.http import server
from tandem_orchestrator.run import Run
from tandem_sidecar.work_client import WorkClient
from tandem_trainer.fetch import FetchFailed, fetch

TOKEN = "a-token-of-this-test"
ASKED = LeaseRequest(member=0, incarnation="a", epoch=1, capacity=4)
REFUSED_SECONDS = 2.0
"""How long a trainer tries, where it is to fail."""


class Api:
    """An orchestrator's API on 127.0.0.1 with a certificate for ``localhost``. ``asked`` are the requests that came."""

    def __init__(self, directory: Path) -> None:
        self.certificate = secret(directory / "api-tls", "localhost")
        self.url = ""
        self.asked: list[str] = []
        self._run = Run(make_job(prompt_file(directory)), directory / "state")

    async def __aenter__(self) -> "Api":
        await self._run.prepare()
        await self._run.open_rollout(0, 0, (0,))
        self._run.serve(1)
        self._runner = server(self._run, TOKEN)
        assert self._runner.app is not None
        self._runner.app.on_response_prepare.append(self._note)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=tls.server_context(self.certificate))
        await site.start()
        self.url = f"https://localhost:{self._runner.addresses[0][1]}"
        return self

    async def _note(self, request: web.Request, _: web.StreamResponse) -> None:
        self.asked.append(request.path)

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._run.stop()


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with Api(tmp_path) as served:
        yield served


type Ask = Callable[[str, Path, float], Coroutine[None, None, None]]


async def as_sidecar(url: str, certificate: Path, _: float) -> None:
    async with WorkClient(url, TOKEN, tls.member_context(certificate)) as client:
        assert len((await client.lease(ASKED)).leases) == 4


async def as_trainer(url: str, certificate: Path, seconds: float) -> None:
    context = tls.member_context(certificate)
    body = await asyncio.to_thread(fetch, f"{url}/v1/report", TOKEN, 1 << 20, seconds, context)
    assert b'"wanted": 8' in body


CLIENTS = [as_sidecar, as_trainer]


@pytest.mark.parametrize("ask", CLIENTS)
async def test_members_believe_the_certificate_of_their_job(api: Api, tmp_path: Path, ask: Ask) -> None:
    await ask(api.url, certificate_alone(tmp_path / "member", api.certificate), SOON)
    assert len(api.asked) == 1


async def test_a_large_body_comes_whole_to_several_trainers_at_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    content = random.Random(1).randbytes(3 * 2**20 + 1)
    monkeypatch.setattr(Run, "warmup", Body(content, "digest"))
    trainer = TOKEN, len(content), SOON, tls.member_context(api.certificate)
    bodies = await asyncio.gather(*(asyncio.to_thread(fetch, f"{api.url}/v1/warmup", *trainer) for _ in range(3)))
    assert all(body == content for body in bodies)


@pytest.mark.parametrize("ask", CLIENTS)
async def test_another_jobs_orchestrator_gets_no_request_and_no_token(api: Api, tmp_path: Path, ask: Ask) -> None:
    other = secret(tmp_path / "other", "localhost")
    with pytest.raises(
        (TryAgain, FetchFailed),
        match=r"is not this job's orchestrator \(self-signed certificate\); it was sent neither",
    ):
        await ask(api.url, other, REFUSED_SECONDS)
    assert api.asked == []


@pytest.mark.parametrize("ask", CLIENTS)
async def test_a_certificate_for_other_names_is_refused_without_a_request(api: Api, tmp_path: Path, ask: Ask) -> None:
    with pytest.raises((TryAgain, FetchFailed), match=r"is not valid for '127\.0\.0\.1'\); it was sent neither"):
        await ask(api.url.replace("localhost", "127.0.0.1"), api.certificate, REFUSED_SECONDS)
    assert api.asked == []


@pytest.mark.parametrize("ask", CLIENTS)
async def test_plain_http_is_not_answered(api: Api, ask: Ask) -> None:
    with pytest.raises((TryAgain, FetchFailed)):
        await ask(api.url.replace("https", "http"), api.certificate, REFUSED_SECONDS)
    assert api.asked == []


async def test_members_of_a_job_with_tls_send_nothing_to_a_server_without(tmp_path: Path) -> None:
    heard = b""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard += await reader.read(65536)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    plain = await asyncio.start_server(listen, "127.0.0.1", 0)
    url = f"https://localhost:{plain.sockets[0].getsockname()[1]}"
    for ask in CLIENTS:
        with pytest.raises((TryAgain, FetchFailed)):
            await ask(url, secret(tmp_path / ask.__name__, "localhost"), REFUSED_SECONDS)
    plain.close()
    await plain.wait_closed()
    assert heard
    assert TOKEN.encode() not in heard


async def test_a_proxy_that_the_environment_names_does_not_come_between(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for ask in CLIENTS:
        await ask(api.url, api.certificate, SOON)


@pytest.mark.parametrize("missing", [tls.CERTIFICATE, tls.KEY])
def test_a_server_without_its_files_does_not_start_in_plain_text(tmp_path: Path, missing: str) -> None:
    mounted = secret(tmp_path / "api-tls", "localhost")
    (mounted / missing).unlink()
    with pytest.raises(TryAgain, match=r"api-tls: tls\.crt and tls\.key cannot be used: .*; restore the Secret"):
        tls.server_context(mounted)


def test_a_member_without_the_certificate_says_so(tmp_path: Path) -> None:
    with pytest.raises(TryAgain, match=r"tls\.crt cannot be used: .*No such file"):
        tls.member_context(tmp_path)
    (tmp_path / tls.CERTIFICATE).write_text("no certificate")
    with pytest.raises(TryAgain, match=r"tls\.crt cannot be used"):
        tls.member_context(tmp_path)


async def test_an_orchestrators_process_serves_tls_under_its_services_name(tmp_path: Path) -> None:
    mounted = secret(tmp_path / "api-tls", "test-orchestrator", "test-orchestrator.default.svc")
    member = tls.member_context(certificate_alone(tmp_path / "member", mounted))

    async def health(address: str) -> bytes | None:
        where = address, ORCHESTRATOR_PORT
        try:
            reader, writer = await asyncio.open_connection(*where, ssl=member, server_hostname="test-orchestrator")
        except ConnectionError:
            return None
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: test-orchestrator\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer

    with etcd_server(tmp_path) as etcd:
        async with Orchestrators(tmp_path, etcd, tls=mounted) as job:
            await job.start()
            answer = await eventually(lambda: health(job.address))
    assert answer.startswith(b"HTTP/1.1 200 OK")
