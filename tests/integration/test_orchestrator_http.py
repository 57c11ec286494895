# SPDX-License-Identifier: Apache-2.0
"""The orchestrator's HTTP API: who may ask, what is refused, and how work goes over it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestClient, TestServer
from orchestrator_world import EOS, make_job, prompt_file, segment
from safetensors.numpy import load
from structlog.testing import capture_logs
from waiting import DEADLINE, reached

from tandem_api.messages.batches import CONTENT_TYPE
from tandem_api.messages.work import Finish, LeaseGrant, LeaseRequest, SegmentBatch, SegmentReceipt
from tandem_orchestrator import http
from tandem_orchestrator.batches import Body
from tandem_orchestrator.buffer import Buffer, BufferFull
from tandem_orchestrator.http import application
from tandem_orchestrator.run import Run

TOKEN = "a-token-of-this-test"
ROUTES = ("/v1/leases", "/v1/segments", "/v1/batches/0", "/v1/warmup", "/v1/report", "/v1/none")


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    made = Run(make_job(prompt_file(tmp_path)), tmp_path / "state")
    await made.prepare()
    yield made
    await made.stop()


@pytest.fixture
async def client(run: Run) -> AsyncIterator[TestClient]:
    async with TestClient(TestServer(application(run, TOKEN)), headers={"Authorization": f"Bearer {TOKEN}"}) as made:
        yield made


def asking(**fields: object) -> str:
    request = {"member": 0, "incarnation": "a", "epoch": 1, "capacity": 4}
    return LeaseRequest.model_validate(request | fields).wire()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("header", [None, "Bearer wrong", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN} ", "Bearer é"])
async def test_without_the_token_every_route_is_closed(client: TestClient, route: str, header: str | None):
    async with ClientSession() as stranger:
        headers = {"Authorization": header.encode().decode("latin-1")} if header else {}
        if header and header.endswith(" "):
            headers["Authorization"] = header + "x"
        async with stranger.get(client.make_url(route), headers=headers) as reply:
            assert (reply.status, await reply.text()) == (401, "this job's bearer token is required")


async def test_health_needs_no_token(client: TestClient):
    async with ClientSession() as stranger, stranger.get(client.make_url("/healthz")) as reply:
        assert reply.status == 200


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("", "EOF while parsing"),
        ("{}", "member: Field required"),
        (asking().replace('"capacity":4', '"capacity":5000'), "capacity: Input should be less than or equal to 4096"),
        (asking().replace('"capacity":4', '"capacity":"many"'), "capacity: Input should be a valid integer"),
        (b"\xff\xfe", "invalid"),
    ],
)
async def test_a_body_that_is_no_message_is_refused_with_the_field(client: TestClient, body: str, sentence: str):
    reply = await client.post("/v1/leases", data=body)
    assert reply.status == 400
    assert sentence.lower() in (await reply.text()).lower()


async def test_a_body_that_is_too_large_is_not_read(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http, "MOST_BYTES", 1000)
    async with TestClient(TestServer(application(run, TOKEN)), headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        assert (await client.post("/v1/segments", data=b"x" * 2000)).status == 413


async def test_a_peer_that_sends_or_reads_nothing_more_is_let_go(run: Run, monkeypatch: pytest.MonkeyPatch):
    """Neither a half sent request nor a reply that nobody takes holds on to memory for ever."""
    monkeypatch.setattr(http, "_READ_SECONDS", 0.2)
    monkeypatch.setattr(http, "_PIECE_SECONDS", 0.2)
    monkeypatch.setattr(Run, "warmup", Body(bytes(64 * 2**20), "digest"))
    head = f" HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {TOKEN}\r\n"
    async with TestServer(application(run, TOKEN)) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(f"POST /v1/leases{head}Content-Length: 9\r\n\r\n".encode())
        status = await asyncio.wait_for(reader.readline(), DEADLINE)
        assert status.startswith(b"HTTP/1.1 408 ")
        writer.close()
        reader, writer = await asyncio.open_connection(server.host, server.port, limit=2**10)
        with capture_logs() as lines:
            writer.write(f"GET /v1/warmup{head}\r\n".encode())
            told = "a peer stopped reading what it asked for; closing its connection"
            await reached(lambda: told in [line["event"] for line in lines], DEADLINE, "it is let go")
        writer.close()


async def test_work_goes_out_and_comes_back_as_a_batch(run: Run, client: TestClient):
    await run.open_rollout(0, 0, (0,))
    run.serve(1)
    reply = await client.post("/v1/leases", data=asking(capacity=64))
    grant = LeaseGrant.model_validate_json(await reply.text())
    assert (grant.epoch, len(grant.leases)) == (1, 8)
    segments = tuple(segment(lease, (5, EOS), Finish.STOP) for lease in grant.leases)
    sent = SegmentBatch(member=0, incarnation="a", epoch=1, segments=segments).wire()
    for _ in range(2):
        receipt = SegmentReceipt.model_validate_json(await (await client.post("/v1/segments", data=sent)).text())
        assert set(receipt.stored) == {lease.trajectory for lease in grant.leases}
        assert receipt.refused == {}
    assert (await client.get("/v1/batches/0")).status == 404
    async with asyncio.timeout(DEADLINE):
        await run.rollout_full()
    await run.close_rollout()
    first, second = [await client.get("/v1/batches/0") for _ in range(2)]
    assert first.headers["ETag"] == second.headers["ETag"]
    assert len(load(await first.read())["rewards"]) == 8
    assert first.headers["Content-Type"] == CONTENT_TYPE
    assert (await client.head("/v1/batches/0")).status == 405
    report = await (await client.get("/v1/report")).json()
    assert (report["done"], report["wanted"], report["iterations"]) == (8, 8, [])


async def test_a_job_without_a_warmup_set_says_so(client: TestClient):
    reply = await client.get("/v1/warmup")
    assert (reply.status, await reply.text()) == (404, "this job has no warm-up set")


async def test_a_member_that_is_behind_is_told_to_stop_and_one_ahead_to_try_again(run: Run, client: TestClient):
    await run.open_rollout(0, 0, (0,))
    run.serve(5)
    behind, ahead = [await client.post("/v1/leases", data=asking(epoch=epoch)) for epoch in (4, 6)]
    assert (behind.status, ahead.status, ahead.headers["Retry-After"]) == (409, 503, "1")


async def test_before_the_first_rollout_members_try_again(client: TestClient):
    assert (await client.post("/v1/leases", data=asking(epoch=0))).status == 503


async def test_a_member_that_sees_the_phase_before_we_serve_it_is_answered_once_we_do(run: Run, client: TestClient):
    await run.open_rollout(0, 0, (0,))
    waiting = asyncio.create_task(client.post("/v1/leases", data=asking(epoch=7, wait=20)))
    await client.get("/healthz")
    run.serve(7)
    async with asyncio.timeout(DEADLINE):
        reply = await waiting
    assert len(LeaseGrant.model_validate_json(await reply.text()).leases) == 4


async def test_a_long_poll_is_answered_as_soon_as_there_is_work(run: Run, client: TestClient):
    await run.open_rollout(0, 0, (0,))
    run.serve(1)
    held = LeaseGrant.model_validate_json(await (await client.post("/v1/leases", data=asking(capacity=64))).text())
    waiting = asyncio.create_task(client.post("/v1/leases", data=asking(wait=20)))
    await client.get("/healthz")
    assert not waiting.done()
    given_back = segment(held.leases[0], (), Finish.ABORT)
    sent = SegmentBatch(member=0, incarnation="a", epoch=1, segments=(given_back,)).wire()
    await client.post("/v1/segments", data=sent)
    async with asyncio.timeout(DEADLINE):
        reply = await waiting
    leases = LeaseGrant.model_validate_json(await reply.text()).leases
    assert [lease.trajectory for lease in leases] == [held.leases[0].trajectory]


async def test_while_the_volume_is_full_segments_are_asked_for_again(
    run: Run, client: TestClient, monkeypatch: pytest.MonkeyPatch
):
    async def no_room(*_: object) -> None:
        raise BufferFull("the replay buffer's volume is full")

    await run.open_rollout(0, 0, (0,))
    run.serve(1)
    grant = LeaseGrant.model_validate_json(await (await client.post("/v1/leases", data=asking())).text())
    done = segment(grant.leases[0], (EOS,), Finish.STOP)
    sent = SegmentBatch(member=0, incarnation="a", epoch=1, segments=(done,)).wire()
    with monkeypatch.context() as patch:
        patch.setattr(Buffer, "append", no_room)
        reply = await client.post("/v1/segments", data=sent)
        assert (reply.status, await reply.text()) == (507, "the replay buffer's volume is full")
    assert (await client.post("/v1/segments", data=sent)).status == 200
