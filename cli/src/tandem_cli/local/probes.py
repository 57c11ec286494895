# SPDX-License-Identifier: Apache-2.0
"""Startup probes: whether a container that was started has come up."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from tandem_api.errors import Problem, UserError
from tandem_cli.local.manifests import Manifest

_HEALTHY = range(200, 400)
Check = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe with Kubernetes' defaults. ``check`` says once whether the container is up."""

    check: Check
    initial_delay: float
    period: float
    timeout: float
    failure_threshold: int

    async def passes(self) -> bool:
        """Check until it is up (True), or failed as often in a row as it may (False)."""
        await asyncio.sleep(self.initial_delay)
        for attempt in range(self.failure_threshold):
            if attempt:
                await asyncio.sleep(self.period)
            if await self._once():
                return True
        return False

    async def _once(self) -> bool:
        try:
            async with asyncio.timeout(self.timeout):
                return await self.check()
        except (TimeoutError, OSError, aiohttp.ClientError):
            return False


def startup_probe(container: Manifest, address: str, execute: Callable[[list[str]], Check]) -> Probe | None:
    """The container's startupProbe, if it has one. ``execute`` makes the check that runs a command in the container.

    Raises:
        UserError: it is of a kind that local mode cannot do.
    """
    spec = container.get("startupProbe")
    if spec is None:
        return None
    return Probe(
        check=_check(spec, container, address, execute),
        initial_delay=spec.get("initialDelaySeconds", 0),
        period=spec.get("periodSeconds", 10),
        timeout=spec.get("timeoutSeconds", 1),
        failure_threshold=spec.get("failureThreshold", 3),
    )


def _check(spec: Manifest, container: Manifest, address: str, execute: Callable[[list[str]], Check]) -> Check:
    if "httpGet" in spec:
        http = spec["httpGet"]
        scheme = http.get("scheme", "HTTP").lower()
        return _http(f"{scheme}://{address}:{_port(http['port'], container)}{http.get('path', '/')}")
    if "tcpSocket" in spec:
        return _connect(address, _port(spec["tcpSocket"]["port"], container))
    if "exec" in spec:
        return execute(spec["exec"]["command"])
    raise UserError(Problem(f"container {container['name']}, startupProbe", "must be httpGet, tcpSocket or exec"))


def _port(port: Any, container: Manifest) -> int:
    if isinstance(port, int):
        return port
    numbers = {item.get("name"): item["containerPort"] for item in container.get("ports") or []}
    if port not in numbers:
        raise UserError(Problem(f"container {container['name']}, startupProbe", f"there is no port named {port}"))
    return int(numbers[port])


def _http(url: str) -> Check:
    async def check() -> bool:
        async with aiohttp.ClientSession() as session, session.get(url, allow_redirects=False) as response:
            return response.status in _HEALTHY

    return check


def _connect(address: str, port: int) -> Check:
    async def check() -> bool:
        _, writer = await asyncio.open_connection(address, port)
        writer.close()
        return True

    return check
