# SPDX-License-Identifier: Apache-2.0
"""A real browser for tests: Chromium without a window, spoken to by its own protocol (DevTools)."""

import asyncio
import base64
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse
from runs import ROOT
from waiting import eventually, reached

_START_SECONDS = 120.0
_LOAD_SECONDS = 120.0
_PHONE = 480


class Tab:
    """A tab. ``problems`` are errors and warnings of the page, ``requests`` what it asked the network for."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._loaded: set[str] = set()

    async def open(self, page: Path, width: int, dark: bool) -> None:
        """Open a file in a window so wide, and wait until it is drawn; narrow windows are phones."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.call(f"{domain}.enable")
        phone = width <= _PHONE
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call("Page.setLifecycleEventsEnabled", enabled=True)
        self.problems, self.requests = [], []
        document = (await self.call("Page.navigate", url=page.as_uri()))["loaderId"]
        async with asyncio.timeout(_LOAD_SECONDS):
            while document not in self._loaded:
                self._note(json.loads((await self._socket.receive()).data))
        # Charts are drawn when their size is known: two frames later all are.
        await self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    async def evaluate(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"]["exception"].get("description"))
        return answer["result"].get("value")

    async def screenshot(self) -> bytes:
        """The whole page as a PNG."""
        answer = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        async with asyncio.timeout(_LOAD_SECONDS):
            while True:
                message = json.loads((await self._socket.receive()).data)
                if message.get("id") == self._number:
                    assert "error" not in message, message
                    result: dict[str, Any] = message["result"]
                    return result
                self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        match event.get("method"):
            case "Page.lifecycleEvent" if event["params"]["name"] == "load":
                self._loaded.add(event["params"]["loaderId"])
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(event["params"]["exceptionDetails"]))
            case "Log.entryAdded" if event["params"]["entry"]["level"] in ("error", "warning"):
                self.problems.append(event["params"]["entry"]["text"])
            case "Runtime.consoleAPICalled" if event["params"]["type"] in ("error", "warning", "assert"):
                self.problems.append(json.dumps(event["params"]["args"]))
            case "Network.requestWillBeSent":
                self.requests.append(event["params"]["request"]["url"])


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Tab]:
    """A tab of a new browser, whose profile lies in ``profile``. It resolves no host name."""
    process = await asyncio.to_thread(_started, profile)
    try:
        port = await _port(profile, process)
        async with ClientSession() as session:
            page = await eventually(partial(_page, session, port), _START_SECONDS)
            async with session.ws_connect(page, max_msg_size=0) as socket:
                yield Tab(socket)
    finally:
        process.terminate()
        process.wait()


def _started(profile: Path) -> subprocess.Popen[bytes]:
    program = subprocess.run([ROOT / "hack" / "chromium"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    options = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0", "--no-first-run"]
    options += [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND", "--disable-dev-shm-usage"]
    # The sandbox of a browser that shows our own page; Chromium refuses to start as root with it.
    options += ["--no-sandbox"] if os.getuid() == 0 else []
    with (profile.parent / "browser.log").open("w") as log:
        return subprocess.Popen([program, *options, "about:blank"], stdout=log, stderr=log)


async def _page(session: ClientSession, port: int) -> str | None:
    """Where the debugger of the first page listens, once there is one."""
    async with session.get(f"http://127.0.0.1:{port}/json") as answer:
        return next((tab["webSocketDebuggerUrl"] for tab in await answer.json() if tab["type"] == "page"), None)


async def _port(profile: Path, process: subprocess.Popen[bytes]) -> int:
    """The port on which the browser listens, which it writes into its profile."""
    file = profile / "DevToolsActivePort"

    def lines() -> list[str]:
        assert process.poll() is None, (profile.parent / "browser.log").read_text()
        return file.read_text().split("\n")[:-1] if file.exists() else []

    return int((await reached(lines, _START_SECONDS, "the browser's start"))[0])
