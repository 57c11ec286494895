# SPDX-License-Identifier: Apache-2.0
"""etcd, as much of it as Tandem uses: reads, leases, watches and compare-and-write transactions."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aetcd
import structlog
from aetcd import exceptions as etcd_errors
from aetcd import rpc
from aetcd.utils import prefix_range_end
from grpc import aio

from tandem_api.base import Message
from tandem_api.errors import Fenced, TryAgain
from tandem_phases.secure import SecureClient

log = structlog.get_logger()

REQUEST_TIMEOUT = 5.0
"""Seconds of a request to the only endpoint."""
FAILOVER_TIMEOUT = 2.0
"""Where there is another endpoint to ask: a lease must outlive a member of etcd that hangs, and the next one too."""
COMMIT_ATTEMPTS = 3
_GRPC_OPTIONS = {
    # etcd closes the connection of a client that pings more often than every 5 s, as two late pings may seem to.
    "grpc.keepalive_time_ms": 7000,
    "grpc.keepalive_timeout_ms": 3000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2000,
    # A new client must try at once, not wait out the back-off of the one it replaces.
    "grpc.use_local_subchannel_pool": 1,
}
_REQUIRE_LEADER = ("hasleader", "true")
"""With this, a member of etcd that hears no leader ends a watch, which else would wait for news that cannot come."""
_BROKEN = (
    etcd_errors.UnauthenticatedError,
    etcd_errors.ConnectionFailedError,
    etcd_errors.ConnectionTimeoutError,
    rpc.AioRpcError,
    TimeoutError,
)
"""After these the next request goes over a new connection, to the next endpoint."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as read. ``created`` and ``modified`` are etcd revisions; ``lease`` is what it disappears with, or 0."""

    key: str
    value: str
    created: int
    modified: int
    lease: int = 0
    _read: dict[type[Message], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def read[M: Message](self, kind: type[M]) -> M:
        """The value as a message. It is parsed once, however often it is read."""
        message: M | None = self._read.get(kind)
        if message is None:
            message = self._read[kind] = kind.model_validate_json(self.value)
        return message


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A key must still have this modification revision (0: must not exist)."""

    key: str
    modified: int


@dataclass(frozen=True, slots=True)
class SameHolder:
    """A key must still be the one created at this revision: deleted and created again is another."""

    key: str
    created: int


Condition = Unchanged | SameHolder


@dataclass(frozen=True, slots=True)
class Change:
    """What a watch saw: ``entry`` is None where the key was deleted."""

    key: str
    entry: Entry | None
    revision: int


class Lease:
    """A lease that is renewed in the background until :meth:`revoke` or until it is lost.

    Once :attr:`lost` is set it stays set: whoever held it must stop writing. It is set early rather than late: when
    the time to live has passed on this process's own monotonic clock without a renewal, whatever etcd may still think.
    """

    def __init__(self, store: "Store", lease_id: int, ttl: float) -> None:
        self._store = store
        self.id = lease_id
        self._ttl = ttl
        self.lost = asyncio.Event()
        self._renewed = time.monotonic()
        self._renewing = asyncio.create_task(self._renew(), name="etcd lease renewal")

    async def _renew(self) -> None:
        pause = self._ttl / 4
        while time.monotonic() - self._renewed < self._ttl:
            await asyncio.sleep(pause)
            asked = time.monotonic()
            try:
                remaining = await self._store.renew(self.id)
            except TryAgain as error:
                log.warning("etcd did not renew the lease", error=str(error))
                # Soon, for another member of etcd may answer where this one hangs, and there is time for one more try.
                pause = self._ttl / 20
                continue
            if remaining <= 0:
                break
            self._renewed, pause = asked, self._ttl / 4
        self.lost.set()

    async def revoke(self) -> None:
        """Give the lease back: its keys disappear at once."""
        self._renewing.cancel()
        self.lost.set()
        await self._store.revoke(self.id)


class Store:
    """A connection to etcd.

    Every call raises :class:`TryAgain` when etcd cannot be reached in time; the next call connects again, to the
    next endpoint. The first one is any of them: so etcd's members share the clients. With ``authorities``, a PEM
    file, over TLS. Use as ``async with Store(endpoints) as store``.
    """

    def __init__(
        self,
        endpoints: tuple[str, ...],
        username: str | None = None,
        password: str | None = None,
        timeout: float | None = None,
        authorities: Path | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._authorities = authorities
        self._credentials = {"username": username, "password": password} if username else {}
        self._timeout = timeout or (REQUEST_TIMEOUT if len(endpoints) == 1 else FAILOVER_TIMEOUT)
        self._attempt = random.randrange(len(endpoints))
        self._client: aetcd.Client | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._disconnect(self._client)

    def _connection(self) -> aetcd.Client:
        if self._client is None:
            host, _, port = self._endpoints[self._attempt % len(self._endpoints)].rpartition(":")
            settings: dict[str, Any] = {
                "host": host,
                "port": int(port),
                "timeout": self._timeout,
                "options": _GRPC_OPTIONS,
            }
            settings |= self._credentials
            self._client = (
                SecureClient(self._authorities, **settings) if self._authorities else aetcd.Client(**settings)
            )
        return self._client

    async def _disconnect(self, failed: aetcd.Client) -> None:
        """Close the connection that failed, not one that another task has opened since."""
        client = self._client
        if client is not None and client is failed:
            self._client = None
            self._attempt += 1
            try:
                async with asyncio.timeout(self._timeout):
                    await client.close()
            except TimeoutError:
                log.warning("the connection to etcd did not close in time; it is left behind")

    async def _call[T](self, operation: Callable[[aetcd.Client], Awaitable[T]]) -> T:
        client = self._connection()
        try:
            async with asyncio.timeout(2 * self._timeout):
                await client.connect()
                return await operation(client)
        except (etcd_errors.ClientError, rpc.AioRpcError, TimeoutError) as error:
            if isinstance(error, _BROKEN):
                await self._disconnect(client)
            raise TryAgain(f"etcd did not answer: {error or type(error).__name__}") from error
        except asyncio.CancelledError as error:
            raise _closed_or_cancelled(error, "request") from None

    async def get(self, key: str) -> Entry | None:
        """The key as it is now."""
        found = await self._call(lambda client: client.get(key.encode()))
        return _entry(found) if found is not None else None

    async def list(self, prefix: str) -> tuple[dict[str, Entry], int]:
        """All keys under a prefix, and the revision at which this was so."""
        found = await self._call(lambda client: client.get_prefix(prefix.encode()))
        entries = {entry.key: entry for entry in map(_entry, found)}
        return entries, found.header.revision

    async def put(self, key: str, value: str, lease: Lease | None = None) -> int:
        """Write without a condition; returns the revision of the write."""
        reply = await self._call(lambda client: client.put(key.encode(), value.encode(), lease=lease and lease.id))
        return int(reply.header.revision)

    async def commit(
        self,
        conditions: tuple[Condition, ...],
        puts: Mapping[str, str],
        lease: Lease | None = None,
        lasting: Mapping[str, str] | None = None,
    ) -> int:
        """Write all of ``puts`` if all conditions hold; returns the revision at which it happened.

        ``puts`` disappear with ``lease``, the ``lasting`` ones written with them do not.

        A lost reply leaves open whether it was written; the same transaction is then tried until etcd says, and a
        refusal is only believed if the keys do not hold our values already.

        Raises:
            Fenced: a condition did not hold; nothing was written.
            TryAgain: etcd did not answer within three tries.
        """

        lasting = lasting or {}

        async def transact(client: aetcd.Client) -> tuple[bool, int]:
            ops = client.transactions
            reply = await client.transaction(
                compare=[_comparison(ops, condition) for condition in conditions],
                success=[
                    *(ops.put(key.encode(), value.encode(), lease=lease and lease.id) for key, value in puts.items()),
                    *(ops.put(key.encode(), value.encode()) for key, value in lasting.items()),
                ],
                failure=[],
            )
            succeeded, responses = reply
            return succeeded, responses[0].response_put.header.revision if succeeded else 0

        for attempt in itertools.count(1):
            try:
                succeeded, revision = await self._call(transact)
            except TryAgain:
                if attempt == COMMIT_ATTEMPTS:
                    raise
                continue
            if succeeded:
                return revision
            if attempt > 1 and (written := await self._already_written(puts)):
                return written
            break
        raise Fenced(
            f"etcd refused the write of {', '.join(puts)}: {' and '.join(map(str, conditions))} no longer holds"
        )

    async def _already_written(self, puts: Mapping[str, str]) -> int | None:
        found = [await self.get(key) for key in puts]
        if all(entry is not None and entry.value == puts[entry.key] for entry in found):
            return max(entry.modified for entry in found if entry is not None)
        return None

    async def delete_prefix(self, prefix: str) -> None:
        await self._call(lambda client: client.delete_prefix(prefix.encode()))

    async def lease(self, ttl: float) -> Lease:
        """A new lease of ``ttl`` seconds, renewed in the background."""
        granted = await self._call(lambda client: client.lease(int(ttl)))
        return Lease(self, granted.id, ttl)

    async def renew(self, lease_id: int) -> int:
        """Renew a lease once; returns the seconds it now has (0: it is gone)."""
        reply = await self._call(lambda client: client.refresh_lease(lease_id))
        return int(reply.TTL) if reply is not None else 0

    async def revoke(self, lease_id: int) -> None:
        try:
            await self._call(lambda client: client.revoke_lease(lease_id))
        except TryAgain as error:
            log.warning("etcd did not take the lease back; it will expire", error=str(error))

    @asynccontextmanager
    async def watch(self, prefix: str, after: int) -> AsyncIterator[AsyncIterator[Change]]:
        """Changes under a prefix, from the revision that follows ``after``.

        Raises:
            TryAgain: the watch broke (etcd gone, history compacted); list again and watch from there.
        """

        async def begin(client: aetcd.Client) -> tuple[aetcd.Client, Any]:
            # A stream of our own: who waits on the one that the client library shares out is not told of its end, if
            # it is closed while the watch is being made.
            metadata = (*(client.metadata or ()), _REQUIRE_LEADER)
            call = rpc.WatchStub(client.channel).Watch(metadata=metadata)
            key = prefix.encode()
            wanted = rpc.WatchCreateRequest(key=key, range_end=prefix_range_end(key), start_revision=after + 1)
            await call.write(rpc.WatchRequest(create_request=wanted))
            _uncancelled(await call.read())
            return client, call

        client, call = await self._call(begin)
        try:
            yield self._changes(client, call)
        finally:
            call.cancel()

    async def _changes(self, client: aetcd.Client, call: Any) -> AsyncIterator[Change]:
        while True:
            try:
                response = _uncancelled(await call.read())
            except (rpc.AioRpcError, TryAgain) as error:
                await self._disconnect(client)
                reason = error.details() if isinstance(error, rpc.AioRpcError) else error
                raise TryAgain(f"the watch on etcd broke: {reason}") from error
            except asyncio.CancelledError as error:
                raise _closed_or_cancelled(error, "watch") from None
            for event in response.events:
                entry = _entry(event.kv) if event.type == rpc.Event.EventType.PUT else None
                yield Change(event.kv.key.decode(), entry, event.kv.mod_revision)


def _closed_or_cancelled(error: asyncio.CancelledError, what: str) -> BaseException:
    """gRPC cancels the calls on a channel that another task of ours closes; then nobody cancelled this task."""
    task = asyncio.current_task()
    if task is None or task.cancelling():
        return error
    return TryAgain(f"the connection to etcd was closed under the {what}")


def _uncancelled(response: Any) -> Any:
    if response is aio.EOF or response.canceled:
        reason = "its stream ended" if response is aio.EOF else response.cancel_reason or "history was compacted"
        raise TryAgain(f"etcd ended the watch: {reason}")
    return response


def _entry(found: Any) -> Entry:
    return Entry(found.key.decode(), found.value.decode(), found.create_revision, found.mod_revision, found.lease)


def _comparison(ops: Any, condition: Condition) -> Any:
    if isinstance(condition, Unchanged):
        return ops.mod(condition.key.encode()) == condition.modified
    return ops.create(condition.key.encode()) == condition.created
