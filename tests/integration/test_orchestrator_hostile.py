# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent to the orchestrator's routes, with the token or without, it answers, and goes on as before."""

import asyncio
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientTimeout, web
from hostile import LEASE_REQUEST, SEGMENT_BATCH, bodies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from orchestrator_world import make_job, prompt_file
from yarl import URL

from tandem_orchestrator.http import server
from tandem_orchestrator.run import Run

TOKEN = "a-token-of-this-test"
EXPECTED = {200, 400, 401, 404, 405, 409, 413, 503}
PATHS = ["/v1/leases", "/v1/segments", "/v1/batches/0", "/v1/batches/-1", "/v1/batches/999999999", "/v1/warmup"]

type Request = tuple[str, str, bytes, dict[str, str]]
requests: st.SearchStrategy[Request] = st.tuples(
    st.sampled_from(["POST", "POST", "GET", "PUT", "DELETE"]),
    st.sampled_from([*PATHS, "/", "/v1/../healthz", "/v1/leases/../segments", "/v1/batches/%00", "/v1/report"]),
    bodies(LEASE_REQUEST) | bodies(SEGMENT_BATCH),
    st.fixed_dictionaries(
        {"Authorization": st.sampled_from([f"Bearer {TOKEN}", f"Bearer {TOKEN}", "Bearer x", ""])},
        optional={
            "Content-Type": st.sampled_from(
                ["application/json", "text/plain; charset=nonsense", "multipart/form-data"]
            ),
            "Content-Encoding": st.sampled_from(["identity", "gzip", "deflate", "br"]),
            "X-Anything": st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200),
        },
    ),
)


async def exchange(directory: Path, sent: list[Request]) -> None:
    run = Run(make_job(prompt_file(directory)), directory / "state")
    await run.prepare()
    served = server(run, TOKEN)
    try:
        limit = ClientTimeout(total=20)
        await served.setup()
        await web.TCPSite(served, "127.0.0.1", 0).start()
        address = "http://{}:{}".format(*served.addresses[0])
        async with ClientSession(timeout=limit) as session:
            before = run.report()
            for method, path, body, headers in sent:
                async with session.request(
                    method, URL(address + path, encoded=True), data=body, headers=headers
                ) as reply:
                    text = await reply.text(errors="replace")
                    assert reply.status in EXPECTED, (method, path, reply.status, text)
                    assert TOKEN not in text
            async with session.get(f"{address}/healthz") as reply:
                assert reply.status == 200
            assert run.report() == before
    finally:
        await served.cleanup()
        await run.stop()


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(sent=st.lists(requests, min_size=5, max_size=20))
def test_any_request_is_answered_and_changes_nothing(sent: list[Any], tmp_path_factory: Any) -> None:
    asyncio.run(exchange(tmp_path_factory.mktemp("hostile"), sent))
