# SPDX-License-Identifier: Apache-2.0
"""The network between one process and etcd, which a test can slow down, block, cut and refuse."""

import asyncio
from contextlib import suppress
from typing import Self

_PIECE = 65536


class EtcdProxy:
    """Forwards one client's connections to etcd. Use as an async context.

    What was sent before a connection was cut still reaches etcd, however late: a client may have given up a request,
    or died, or sent it again, when etcd takes it.

    ``delay``: seconds by which every piece is late, either way. ``refuses``: new connections are closed at once.
    """

    def __init__(self, endpoint: str) -> None:
        self._host, _, port = endpoint.rpartition(":")
        self._port = int(port)
        self._open = asyncio.Event()
        self._open.set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self.delay = 0.0
        self.refuses = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """What the client takes for etcd."""
        return (f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}",)

    @property
    def taken(self) -> bool:
        """Whether a client is connected."""
        return bool(self._clients)

    def block(self) -> None:
        """Hold everything back, either way, without a word: a partition."""
        self._open.clear()

    def cut(self) -> None:
        """End the client's connections."""
        for client in self._clients:
            client.transport.abort()

    def heal(self) -> None:
        """Be a good network again, and bring what was held back."""
        self.delay, self.refuses = 0.0, False
        self._open.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer), name="proxy to etcd")
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            if not self.refuses:
                answers, upstream = await asyncio.open_connection(self._host, self._port)
                await asyncio.gather(self._pump(reader, upstream), self._pump(answers, writer))
        except OSError:
            # etcd is away: the client learns it by the end of its connection.
            return
        finally:
            self._clients.discard(writer)
            for end in (writer, upstream):
                if end is not None:
                    end.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await source.read(_PIECE):
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self._open.wait()
                sink.write(piece)
                await sink.drain()
        with suppress(OSError):
            sink.write_eof()
