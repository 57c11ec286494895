# SPDX-License-Identifier: Apache-2.0
"""Loopback addresses of one run: a /24 of 127.0.0.0/8, so that runs side by side never share an address."""

import ipaddress
import os
import random
import socket
from types import TracebackType
from typing import Self

from tandem_api.errors import RunFailed

_CLAIM_PORT = 29399
_NODE = 1
_FIRST_POD = 10
_LAST_POD = 250
_ATTEMPTS = 64


class Subnet:
    """A /24 that belongs to this run as long as this process lives.

    A listening socket on its first address is the claim: the kernel gives it back however the process ends.

    >>> with Subnet() as subnet:
    ...     subnet.node, subnet.pod()
    ('127.83.201.1', '127.83.201.10')
    """

    def __init__(self) -> None:
        self._claim, self._prefix = _claim_subnet()
        self._next_pod = _FIRST_POD

    @property
    def node(self) -> str:
        """The address of what is not in a pod: etcd."""
        return f"{self._prefix}.{_NODE}"

    def pod(self) -> str:
        """A new pod's address."""
        if self._next_pod > _LAST_POD:
            raise RunFailed(f"local mode has addresses for {_LAST_POD - _FIRST_POD + 1} pods; use a cluster for more")
        address = f"{self._prefix}.{self._next_pod}"
        self._next_pod += 1
        return address

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._claim.close()


def _claim_subnet() -> tuple[socket.socket, str]:
    # Seeded by nothing a job sees: two runs of one job must differ.
    chance = random.Random(os.urandom(8))
    for _ in range(_ATTEMPTS):
        network = ipaddress.ip_address(f"127.{chance.randint(16, 254)}.{chance.randint(0, 255)}.0")
        claim = socket.socket()
        try:
            claim.bind((str(network + _NODE), _CLAIM_PORT))
            claim.listen(1)
        except OSError:
            claim.close()
            continue
        return claim, str(network).rpartition(".")[0]
    raise RunFailed(
        f"found no free loopback network in {_ATTEMPTS} tries; does this machine let processes bind 127.0.0.0/8?"
    )
