# SPDX-License-Identifier: Apache-2.0
"""Users and roles in etcd: each job has one of its own that reaches nothing but the job's keys.

Through etcd's HTTP gateway, since user management is no part of the client library.
"""

import asyncio
import base64
import ssl
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import structlog

from tandem_api.errors import TryAgain
from tandem_api.keys import JobKeys

log = structlog.get_logger()

_SECONDS = 10.0
_EXISTS = ("already exists",)
_ABSENT = ("not found", "does not exist")
_RETRY_SECONDS = 2.0
NOT_ENABLED = "authentication is not enabled"
"""What etcd says to whoever gives a password before it asks for any: it is new, or came back empty."""


def account_name(uid: str) -> str:
    """Name of a job's user, and of its role."""
    return f"tandem-{uid}"


class AccountError(TryAgain):
    """etcd refused to manage an account."""


class Accounts:
    """Makes and removes accounts as etcd's root user. With ``authorities``, a PEM file, over TLS.

    Use as ``async with``.
    """

    def __init__(
        self, endpoints: tuple[str, ...], username: str, password: str, authorities: Path | None = None
    ) -> None:
        self._endpoints = endpoints
        self._authorities = authorities
        self._username = username
        self._password = password
        self._token: str | None = None
        self._attempt = 0
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        tls = ssl.create_default_context(cafile=self._authorities) if self._authorities else False
        connector = aiohttp.TCPConnector(ssl=tls)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=_SECONDS))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def enable(self) -> None:
        """Turn authentication on in an etcd that is new; the operator's user becomes its root."""
        if await self._enabled():
            return
        log.info("turning etcd's authentication on", user=self._username)
        await self._post("user/add", _EXISTS, name=self._username, password=self._password)
        await self._post("role/add", _EXISTS, name="root")
        await self._post("user/grant", user=self._username, role="root")
        await self._post("enable")

    async def add(self, keys: JobKeys, password: str) -> None:
        """Make the job's user. It is fine if there is one: its password is the job's, which never changes."""
        name = account_name(keys.uid)
        prefix = keys.prefix.encode()
        end = prefix[:-1] + bytes([prefix[-1] + 1])
        permission = {"permType": "READWRITE", "key": _base64(prefix), "range_end": _base64(end)}
        await self._as_root("role/add", _EXISTS, name=name)
        await self._as_root("role/grant", name=name, perm=permission)
        await self._as_root("user/add", _EXISTS, name=name, password=password)
        await self._as_root("user/grant", user=name, role=name)

    async def remove(self, uid: str) -> None:
        """Remove the job's user and role, if they are there."""
        name = account_name(uid)
        await self._as_root("user/delete", _ABSENT, name=name)
        await self._as_root("role/delete", _ABSENT, role=name)

    async def names(self) -> frozenset[str]:
        """The users that there are."""
        answer = await self._as_root("user/list")
        return frozenset(answer.get("users", ()))

    async def _enabled(self) -> bool:
        try:
            await self._authenticate()
        except AccountError as error:
            if NOT_ENABLED in str(error):
                self._token = None
                return False
            raise
        return True

    async def _authenticate(self) -> None:
        answer = await self._post("authenticate", name=self._username, password=self._password)
        self._token = answer["token"]

    async def _as_root(self, call: str, fine: tuple[str, ...] = (), **body: Any) -> Any:
        if self._token is None:
            await self._authenticate()
        try:
            return await self._post(call, fine, **body)
        except AccountError as error:
            if "invalid auth token" not in str(error) and "revision in header is old" not in str(error):
                raise
            await self._authenticate()
            return await self._post(call, fine, **body)

    async def _post(self, call: str, fine: tuple[str, ...] = (), **body: Any) -> Any:
        assert self._session is not None, "enter the Accounts first"
        endpoint = self._endpoints[self._attempt % len(self._endpoints)]
        url = f"{'https' if self._authorities else 'http'}://{endpoint}/v3/auth/{call}"
        headers = {"Authorization": self._token} if self._token else {}
        try:
            async with self._session.post(url, json=body, headers=headers) as response:
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self._attempt += 1
            raise TryAgain(f"etcd's gateway did not answer: {error or 'timeout'}") from error
        message = str(answer.get("error", "")) or str(answer.get("message", ""))
        if response.status >= 400 and not any(text in message for text in fine):
            # A member that hears no leader says 503: another one may.
            self._attempt += response.status == HTTPStatus.SERVICE_UNAVAILABLE
            raise AccountError(f"etcd refused auth/{call}: {message}")
        return answer


class Protection:
    """Keeps etcd asking for passwords, also one that came back empty; ``known`` is told which users it then has."""

    def __init__(self, accounts: Accounts, known: Callable[[frozenset[str]], None]) -> None:
        self._accounts = accounts
        self._known = known
        self._doubted = asyncio.Event()

    def doubt(self) -> None:
        """etcd was away, or is new: look again."""
        self._doubted.set()

    async def run(self) -> None:
        """Look at the beginning and whenever there is a doubt, until cancelled."""
        while True:
            self._doubted.clear()
            try:
                await self._accounts.enable()
                self._known(await self._accounts.names())
            except TryAgain as error:
                log.warning("cannot see to etcd's authentication", error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                await self._doubted.wait()


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()
