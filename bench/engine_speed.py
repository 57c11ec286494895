# SPDX-License-Identifier: Apache-2.0
"""How fast a real vLLM is: decoding by the number of sequences, prefill, and what streaming costs."""

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from rollout_simulation import SpeedCurve
from runs import ROOT, changed

from tandem_api.environment import Job
from tandem_api.manifest import load
from tandem_api.messages.work import Finish, Sampling
from tandem_api.model_source import model_directory
from tandem_sidecar.engine import Engine
from tandem_sidecar.engine_client import EngineClient, Generation
from tandem_sidecar.metrics import MemberMetrics

LONGEST = 2048
MOST = 64
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_STEPS = 64
_START_SECONDS = 500.0


class ScriptedEngine(EngineClient):
    """A real engine whose responses are as long as they are told to be, whatever the model says."""

    def __init__(self, socket: Path, lengths: Callable[[str], int]) -> None:
        super().__init__(socket)
        self.lengths = lengths

    async def generate(
        self, request: str, tokens: tuple[int, ...], max_tokens: int, sampling: Sampling
    ) -> AsyncGenerator[Generation]:
        trajectory, offset, _ = request.split(".")
        left = self.lengths(trajectory) - int(offset)
        async for piece in super().generate(request, tokens, min(left, max_tokens), sampling):
            ended = piece.finish is Finish.LENGTH and left <= max_tokens
            yield replace(piece, finish=Finish.STOP) if ended else piece

    @staticmethod
    def _request(request: str, tokens: tuple[int, ...], parameters: dict[str, Any]) -> dict[str, Any]:
        return EngineClient._request(request, tokens, parameters | {"ignore_eos": True})

    async def call_weights(self, version: int) -> None:
        """Say which version the engine's weights are; they stay what they are."""
        await self._post("/update_weight_version", {"new_version": str(version)})

    async def whole(self, name: str, tokens: tuple[int, ...], count: int) -> None:
        """``count`` tokens in one answer, without streaming."""
        parameters = {"max_tokens": count, "temperature": 1.0, "logprobs": 0, "detokenize": False}
        await self._post("/inference/v1/generate", self._request(name, tokens, parameters), timeout=600.0)

    async def streamed(self, name: str, tokens: tuple[int, ...], count: int) -> None:
        """``count`` tokens as the sidecar takes them."""
        async for _ in super().generate(f"{name}.0.0", tokens, count, Sampling()):
            pass


@asynccontextmanager
async def scripted_engine() -> AsyncIterator[ScriptedEngine]:
    """A vLLM with the model of the example and random weights."""
    changes = {
        "spec.engine.maxModelLen": LONGEST,
        "spec.engine.maxConcurrent": MOST,
        "spec.model.source.random.config.max_position_embeddings": LONGEST,
    }
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        manifest = directory / "job.yaml"
        manifest.write_text(changed(ROOT / "examples" / "chain-sum.yaml", changes))
        job = Job("default", "speed", "uid", load(manifest).spec)
        model = Path(model_directory(job.spec.model, directory / "model"))
        engine = Engine(job, model, directory, MemberMetrics(CollectorRegistry()))
        try:
            await engine.start(_START_SECONDS)
            async with ScriptedEngine(engine.socket, lambda _: LONGEST) as client:
                await client.call_weights(0)
                await seconds_of(client.whole, MOST, _STEPS)
                yield client
        finally:
            await engine.close()


async def seconds_of(ask: Callable[..., Any], batch: int, count: int, prompt: int = 4) -> float:
    """The best of three times for ``batch`` requests at once, each of ``count`` tokens after a prompt of its own."""
    drawn = random.Random(time.monotonic_ns())
    best = float("inf")
    for _ in range(3):
        prompts = [tuple(drawn.randrange(3, 90) for _ in range(prompt)) for _ in range(batch)]
        began = time.monotonic()
        await asyncio.gather(*(ask(f"{drawn.getrandbits(60)}", tokens, count) for tokens in prompts))
        best = min(best, time.monotonic() - began)
    return best


async def speed_curve(client: ScriptedEngine) -> SpeedCurve:
    """Measured; a step with more sequences is taken to last no less than one with fewer."""
    seconds: list[float] = []
    for batch in _BATCHES:
        step = await seconds_of(client.whole, batch, _STEPS) / _STEPS
        seconds.append(max(step, *seconds) if seconds else step)
    prompt = LONGEST // 2
    prefill = 8 * prompt / await seconds_of(client.whole, 8, 1, prompt)
    return SpeedCurve(_BATCHES, tuple(seconds), prefill)


async def streaming_cost(client: ScriptedEngine) -> tuple[float, float]:
    """Tokens a second of a full engine: whole answers, and streamed as the sidecar asks for them."""
    count = 512
    whole, streamed = [await seconds_of(ask, MOST, count) for ask in (client.whole, client.streamed)]
    return MOST * count / whole, MOST * count / streamed
