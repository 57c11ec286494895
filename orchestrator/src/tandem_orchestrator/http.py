# SPDX-License-Identifier: Apache-2.0
"""The orchestrator's HTTP API (routes: :mod:`tandem_api.messages.work`)."""

import asyncio
import hmac

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from pydantic import ValidationError

from tandem_api.base import Message
from tandem_api.errors import Fenced, RunFailed, TryAgain
from tandem_api.messages.batches import CONTENT_TYPE
from tandem_api.messages.work import LeaseRequest, SegmentBatch
from tandem_orchestrator.batches import Body
from tandem_orchestrator.buffer import BufferFull
from tandem_orchestrator.run import Run

log = structlog.get_logger()

MOST_BYTES = 256 * 2**20
"""Largest body that is read."""

_PIECE = 256 * 2**10
"""Bytes written at a time. A body given whole would be copied for every trainer that fetches it, over TLS twice."""

_READ_SECONDS = 120.0
"""Within this time a peer sends all of its body."""

_PIECE_SECONDS = 60.0
"""Within this time a peer takes the next piece of what it asked for."""

_RUN = web.AppKey("run", Run)


def application(run: Run, token: str) -> web.Application:
    """The API of ``run``. Every route but ``/healthz`` asks for ``token`` as bearer token.

    Errors are a sentence of plain text: 400 for a body that is no message, 401, 404, 408 for one that does not come,
    409 to a member that is behind, 413, 503 with Retry-After for what may succeed later, 507 while the buffer's volume
    is full.
    """
    app = web.Application(middlewares=[_authorised(token), _named_errors], client_max_size=MOST_BYTES)
    app[_RUN] = run
    app.add_routes(
        [
            web.get("/healthz", _health),
            web.post("/v1/leases", _leases),
            web.post("/v1/segments", _segments),
            web.get(r"/v1/batches/{iteration:\d{1,9}}", _batch, allow_head=False),
            web.get("/v1/warmup", _warmup, allow_head=False),
            web.get("/v1/report", _report),
        ]
    )
    return app


def server(run: Run, token: str) -> web.AppRunner:
    """What serves the API. Bodies are taken as they come: nobody sends compressed ones, which could be bombs."""
    return web.AppRunner(application(run, token), access_log=None, auto_decompress=False)


def _authorised(token: str) -> Middleware:
    wanted = f"Bearer {token}".encode()

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if request.path != "/healthz" and not hmac.compare_digest(given, wanted):
            return web.Response(status=401, text="this job's bearer token is required")
        return await handler(request)

    return middleware


@web.middleware
async def _named_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        return web.Response(status=400, text=f"{where}: {first['msg']}")
    except Fenced as error:
        return web.Response(status=409, text=str(error))
    except BufferFull as error:
        return web.Response(status=507, text=str(error))
    except TryAgain as error:
        return web.Response(status=503, text=str(error), headers={"Retry-After": "1"})
    except RunFailed as error:
        log.error("a request cannot be answered", path=request.path, error=str(error))
        return web.Response(status=500, text=str(error))


async def _health(request: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _leases(request: web.Request) -> web.Response:
    return _json(await request.app[_RUN].lease(LeaseRequest.model_validate_json(await _read(request))))


async def _segments(request: web.Request) -> web.Response:
    return _json(await request.app[_RUN].store(SegmentBatch.model_validate_json(await _read(request))))


async def _batch(request: web.Request) -> web.StreamResponse:
    iteration = int(request.match_info["iteration"])
    return await _body(request, await request.app[_RUN].batch(iteration), f"there is no batch of iteration {iteration}")


async def _warmup(request: web.Request) -> web.StreamResponse:
    return await _body(request, request.app[_RUN].warmup, "this job has no warm-up set")


async def _report(request: web.Request) -> web.Response:
    return web.json_response(request.app[_RUN].report())


async def _read(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(_READ_SECONDS):
            return await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(text=f"the body did not come within {_READ_SECONDS:.0f} s") from error


def _json(message: Message) -> web.Response:
    return web.Response(text=message.wire(), content_type="application/json")


async def _body(request: web.Request, body: Body | None, missing: str) -> web.StreamResponse:
    if body is None:
        return web.Response(status=404, text=missing)
    reply = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE, "ETag": f'"{body.digest}"'})
    reply.content_length = len(body.content)
    await reply.prepare(request)
    content = memoryview(body.content)
    try:
        for start in range(0, len(content), _PIECE):
            async with asyncio.timeout(_PIECE_SECONDS):
                await reply.write(content[start : start + _PIECE])
        await reply.write_eof()
    except TimeoutError:
        log.warning("a peer stopped reading what it asked for; closing its connection", path=request.path)
        if request.transport is not None:
            request.transport.abort()
    return reply
