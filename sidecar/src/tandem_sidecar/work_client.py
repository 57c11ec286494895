# SPDX-License-Identifier: Apache-2.0
"""The orchestrator's HTTP API, as a sidecar uses it."""

import ssl
from types import TracebackType
from typing import Self

import aiohttp

from tandem_api import tls
from tandem_api.base import Message
from tandem_api.errors import Fenced, TryAgain
from tandem_api.messages.work import LeaseGrant, LeaseRequest, SegmentBatch, SegmentReceipt


class WorkClient:
    """Leases and segments. Errors of the transport are :class:`TryAgain`; 409 means that we are out of date.

    ``context`` says whom to believe where the API is served over TLS (tandem_api.tls). Make it inside an event loop.
    """

    def __init__(self, url: str, token: str, context: ssl.SSLContext | None = None) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            base_url=url,
            connector=aiohttp.TCPConnector(ssl=context or True),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=60.0, sock_connect=5.0),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def lease(self, request: LeaseRequest) -> LeaseGrant:
        return await self._post("/v1/leases", request, LeaseGrant)

    async def store(self, segments: SegmentBatch) -> SegmentReceipt:
        """Bring segments back; when this returns they are on the orchestrator's disk."""
        return await self._post("/v1/segments", segments, SegmentReceipt)

    async def _post[T: Message](self, route: str, message: Message, kind: type[T]) -> T:
        try:
            async with self._session.post(route, data=message.wire()) as reply:
                body = await reply.text()
        except aiohttp.ClientConnectorCertificateError as error:
            raise TryAgain(tls.unproven(self._url, error.certificate_error)) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TryAgain(f"the orchestrator did not answer {route}: {error or type(error).__name__}") from error
        if reply.status == 409:
            raise Fenced(f"the orchestrator no longer knows this member: {body}")
        if reply.status != 200:
            raise TryAgain(f"the orchestrator answered {route} with {reply.status}: {body[:500]}")
        return kind.model_validate_json(body)
