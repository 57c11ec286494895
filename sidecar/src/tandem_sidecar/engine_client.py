# SPDX-License-Identifier: Apache-2.0
"""vLLM's HTTP routes over a Unix socket (docs/engine-routes.md)."""

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
from pydantic import Field

from tandem_api.base import Message
from tandem_api.errors import MemberFailed, TryAgain
from tandem_api.messages.work import Finish, Sampling, VersionSpan

MODEL_NAME = "policy"
_PAUSE_SECONDS = 15.0
"""Aborting takes milliseconds; a Release waits no longer for an engine that hangs."""
_FINISH = {"stop": Finish.STOP, "length": Finish.LENGTH, "abort": Finish.ABORT}
_PIECE = 128
"""Tokens of a streamed piece: enough that streaming costs the engine nothing (docs/engine-routes.md)."""
_LONGEST_LINE = 2**22


@dataclass(frozen=True, slots=True)
class Generation:
    """A piece of what a request produced: token ids and their log-probs.

    The last piece says why it ended, and which weights drew the tokens of all pieces.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[VersionSpan, ...] = ()
    finish: Finish | None = None


class HandoffReport(Message):
    """What a worker's plugin says of the last weight update."""

    in_service: bool
    version: int | None = None
    digest: str | None = None
    tensors: int = 0
    bytes: int = 0
    seconds: dict[str, float] = Field(default_factory=dict)
    error: str | None = None


class EngineClient:
    """One engine. Errors of the transport are :class:`TryAgain`, refusals are :class:`MemberFailed`."""

    def __init__(self, socket: Path) -> None:
        self._session = aiohttp.ClientSession(
            base_url="http://engine",
            # vLLM closes a connection after an error; a kept one would fail the next request.
            connector=aiohttp.UnixConnector(path=str(socket), limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0),
            read_bufsize=_LONGEST_LINE,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def _post(self, route: str, body: dict[str, Any] | None = None, timeout: float = 60.0) -> Any:
        try:
            async with self._session.post(route, json=body, timeout=aiohttp.ClientTimeout(total=timeout)) as reply:
                if reply.status != 200:
                    raise MemberFailed(f"vLLM answered {route} with {reply.status}: {_message(await reply.text())}")
                return await reply.json() if reply.content_type == "application/json" else None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TryAgain(f"vLLM did not answer {route}: {error or type(error).__name__}") from error

    async def healthy(self) -> bool:
        """Whether the server answers. That says nothing of its core: only :meth:`generate` does."""
        try:
            async with self._session.get("/health", timeout=aiohttp.ClientTimeout(total=5.0)) as reply:
                return reply.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def generate(
        self, request: str, tokens: tuple[int, ...], max_tokens: int, sampling: Sampling
    ) -> AsyncGenerator[Generation]:
        """Tokens that follow ``tokens``, at most ``max_tokens``, piece by piece; the last one alone has a finish.

        An abort ends it with what there is.
        """
        parameters = {
            "max_tokens": max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": -1,
            "n": 1,
            "logprobs": 0,
            "seed": sampling.seed,
            "stop_token_ids": list(sampling.stop_token_ids),
            "detokenize": False,
            "stream_interval": _PIECE,
        }
        body = self._request(request, tokens, parameters) | {"stream": True}
        async for event in self._events("/inference/v1/generate", body):
            piece = _piece(event["choices"][0])
            yield piece
            if piece.finish is not None:
                return
        raise TryAgain("vLLM ended an answer without saying why")

    async def abort(self, *requests: str) -> None:
        """End requests of :meth:`generate`: their streams end with what there is."""
        await self._post("/abort_requests", {"request_ids": [f"generate-tokens-{request}" for request in requests]})

    async def _events(self, route: str, body: dict[str, Any]) -> AsyncGenerator[Any]:
        """The server-sent events of an answer, to its end."""
        try:
            async with self._session.post(route, json=body) as reply:
                if reply.status != 200:
                    raise MemberFailed(f"vLLM answered {route} with {reply.status}: {_message(await reply.text())}")
                async for line in reply.content:
                    if line.startswith(b"data: {"):
                        event = json.loads(line[len(b"data: ") :])
                        if "error" in event:
                            raise MemberFailed(f"vLLM broke off {route}: {_message(json.dumps(event['error']))}")
                        yield event
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TryAgain(f"vLLM did not answer {route}: {error or type(error).__name__}") from error

    async def score(self, tokens: tuple[int, ...]) -> tuple[float, ...]:
        """The engine's log-probs of ``tokens[1:]``; one real request through the core."""
        parameters = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
        reply = await self._post("/inference/v1/generate", self._request("probe", tokens, parameters), timeout=120.0)
        rows = reply["prompt_logprobs"][1:]
        return tuple(row[str(token)]["logprob"] for row, token in zip(rows, tokens[1:], strict=True))

    @staticmethod
    def _request(request: str, tokens: tuple[int, ...], parameters: dict[str, Any]) -> dict[str, Any]:
        return {
            "request_id": request,
            "model": MODEL_NAME,
            "token_ids": list(tokens),
            "stream": False,
            "sampling_params": parameters,
        }

    async def pause(self) -> None:
        """Abort what runs (each request answers with its partial tokens) and hold what comes."""
        await self._post("/pause?mode=abort&clear_cache=true", timeout=_PAUSE_SECONDS)

    async def resume(self) -> None:
        await self._post("/resume")

    async def sleep(self) -> None:
        await self._post("/sleep?level=2")

    async def wake_up(self, part: str) -> None:
        """Bring back ``weights`` or ``kv_cache``."""
        await self._post(f"/wake_up?tags={part}")

    async def prepare_handoff(self, directory: Path) -> None:
        """Once after every start of the engine: where the trainer ranks serve their segments."""
        await self._post("/init_weight_transfer_engine", {"init_info": {"directory": str(directory)}})

    async def start_update(self) -> None:
        """Begin an update; one that nobody finished is given up first, so that a retry always can begin."""
        await self._post("/collective_rpc", {"method": "handoff_abandon"})
        await self._post("/start_weight_update")

    async def receive(self, version: int, timeout: float) -> None:
        """Take the weights that the trainer exports as ``version``."""
        info = {"update_info": {"version": version, "timeout": timeout}}
        await self._post("/update_weights", info, timeout=timeout + 5.0)

    async def finish_update(self, version: int) -> None:
        await self._post("/finish_weight_update", {"weight_version": str(version)}, timeout=300.0)

    async def handoff_reports(self) -> list[HandoffReport]:
        """One report a worker."""
        reply = await self._post("/collective_rpc", {"method": "handoff_report"})
        return [HandoffReport.model_validate(report) for report in reply["results"]]


def _piece(choice: dict[str, Any]) -> Generation:
    tokens = tuple(choice["token_ids"])
    return Generation(
        tokens=tokens,
        logprobs=tuple(item["logprob"] for item in choice["logprobs"]["content"]) if tokens else (),
        versions=tuple(
            VersionSpan(version=int(span["version"]), count=span["end"] - span["start"])
            for span in choice.get("weight_versions") or ()
        ),
        finish=_FINISH[choice["finish_reason"]] if choice["finish_reason"] else None,
    )


def _message(text: str) -> str:
    return text if len(text) <= 2000 else text[:2000] + "…"
