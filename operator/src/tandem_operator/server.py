# SPDX-License-Identifier: Apache-2.0
"""/healthz, /readyz and /metrics over HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

STALLED_SECONDS = 30.0
_BEAT_SECONDS = 1.0


class Health:
    """Healthy while the event loop turns; ready once kopf watches RLJobs, leading or not, until shutdown begins."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self._beat = time.monotonic()

    async def beat(self) -> None:
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(_BEAT_SECONDS)

    @property
    def alive(self) -> bool:
        return time.monotonic() - self._beat < STALLED_SECONDS


@asynccontextmanager
async def serve(port: int, health: Health, before_scrape: Callable[[], None]) -> AsyncIterator[None]:
    """Serve until the block is left."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok" if health.alive else "stalled", status=200 if health.alive else 503)

    async def readyz(_: web.Request) -> web.Response:
        ready = health.ready.is_set()
        return web.Response(text="ok" if ready else "not ready", status=200 if ready else 503)

    async def metrics(_: web.Request) -> web.Response:
        before_scrape()
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    beating = asyncio.create_task(health.beat(), name="heartbeat")
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        beating.cancel()
        await runner.cleanup()
