# SPDX-License-Identifier: Apache-2.0
"""etcd over TLS: the client library opens its channels without."""

import asyncio
from pathlib import Path
from typing import Any

import aetcd
import grpc
from aetcd import exceptions, rpc


class SecureClient(aetcd.Client):  # type: ignore[misc]
    """A client that believes an etcd only if one of the authorities signed its certificate.

    ``authorities`` is a PEM file. It is read at each connection, so that a renewed one counts from the next on.
    """

    def __init__(self, authorities: Path, **options: Any) -> None:
        super().__init__(**options)
        self._authorities = authorities
        self._connecting = asyncio.Lock()

    async def connect(self) -> None:
        """Open the channel and, with a user name, log in.

        Raises:
            exceptions.ConnectionFailedError: etcd did not answer, or is not who it should be.
        """
        async with self._connecting:
            if not self._connected.is_set():
                await self._open()
                self._connected.set()

    async def _open(self) -> None:
        credentials = grpc.ssl_channel_credentials(self._authorities.read_bytes())
        self.channel = rpc.secure_channel(f"{self._host}:{self._port}", credentials, options=self._options.items())
        if self._username is not None:
            login = rpc.AuthenticateRequest(name=self._username, password=self._password)
            try:
                reply = await rpc.AuthStub(self.channel).Authenticate(login, timeout=self._timeout)
            except rpc.AioRpcError as error:
                raise exceptions.ConnectionFailedError(error.details()) from error
            self.metadata = (("token", reply.token),)
        self.kvstub = rpc.KVStub(self.channel)
        self.leasestub = rpc.LeaseStub(self.channel)
