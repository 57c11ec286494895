# SPDX-License-Identifier: Apache-2.0
"""With a real vLLM: where a trajectory is cut does not show in it, and one that loops is stopped."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import cast

import pytest
import torch
from engine_fixture import CHARACTERS, CONFIG, PROBE, Engine, generated_tokens, reference_model, weights
from orchestrator_world import make_job, prompt_file
from prometheus_client import CollectorRegistry
from waiting import attempts, reached

from tandem_api.messages.work import (
    Finish,
    Lease,
    LeaseGrant,
    LeaseRequest,
    Sampling,
    Segment,
    SegmentBatch,
    SegmentReceipt,
)
from tandem_api.spec.algorithm import Repetition
from tandem_orchestrator.run import Run
from tandem_sidecar.engine_client import EngineClient, Generation
from tandem_sidecar.metrics import MemberMetrics
from tandem_sidecar.responses import Response
from tandem_sidecar.rollouts import Rollouts
from tandem_sidecar.work_client import WorkClient

TOLERANCE = 1e-3
PATIENCE = 120.0
LENGTH = 48


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[EngineClient]:
    async with EngineClient(engine.socket) as made:
        yield made


def lease(tokens: tuple[int, ...], offset: int, most: int, name: str = "1-0") -> Lease:
    greedy = Sampling(temperature=0.0)
    return Lease(trajectory=name, tokens=tokens, offset=offset, max_new_tokens=most, sampling=greedy, expires=60.0)


async def generated(client: EngineClient, granted: Lease, version: int) -> Segment:
    """What the engine makes of a lease that nobody interrupts."""
    response = Response(granted, version, None)
    name = f"{granted.trajectory}.{granted.offset}.{granted.max_new_tokens}"
    async for piece in client.generate(name, granted.tokens, granted.max_new_tokens, granted.sampling):
        response.add(piece)
    return response.segment()


async def in_pieces(client: EngineClient, version: int, lengths: list[int]) -> tuple[list[int], list[float]]:
    """Tokens and log-probs of a trajectory that is cut after each of these lengths, and goes on from its tokens."""
    tokens: list[int] = []
    logprobs: list[float] = []
    for length in lengths:
        made = await generated(client, lease((*PROBE, *tokens), len(tokens), length), version)
        tokens += made.tokens
        logprobs += made.logprobs
    return tokens, logprobs


def assert_same(one: tuple[list[int], list[float]], other: tuple[list[int], list[float]]) -> None:
    assert one[0] == other[0]
    torch.testing.assert_close(torch.tensor(one[1]), torch.tensor(other[1]), atol=TOLERANCE, rtol=0)


async def test_a_trajectory_cut_at_any_point_goes_on_as_if_it_had_not_been_cut(
    engine: Engine, client: EngineClient, version: int
) -> None:
    engine.hand_over(version, weights(reference_model(engine.model, seed=1)))
    whole = await in_pieces(client, version, [LENGTH])
    assert len(whole[0]) == LENGTH
    for first in range(1, LENGTH, 8):
        cuts = range(first, min(first + 8, LENGTH))
        for made in await asyncio.gather(*(in_pieces(client, version, [cut, LENGTH - cut]) for cut in cuts)):
            assert_same(made, whole)
    assert_same(await in_pieces(client, version, [1] * LENGTH), whole)


class CountingClient(EngineClient):
    """Knows how many tokens it has been given."""

    tokens = 0

    async def generate(
        self, request: str, tokens: tuple[int, ...], max_tokens: int, sampling: Sampling
    ) -> AsyncGenerator[Generation]:
        async with contextlib.aclosing(super().generate(request, tokens, max_tokens, sampling)) as pieces:
            async for piece in pieces:
                self.tokens += len(piece.tokens)
                yield piece


async def test_trajectories_that_release_after_release_cuts_short_are_what_they_would_have_been(
    engine: Engine, version: int, tmp_path: Path
) -> None:
    """Through the sidecar's rollouts and the orchestrator's buffer, with evaluation's greedy trajectories."""
    engine.hand_over(version, weights(reference_model(engine.model, seed=1)))
    cut = 0
    async with asyncio.timeout(2 * PATIENCE), CountingClient(engine.socket) as client:
        for attempt in attempts("eight trajectories are cut short, which a fast engine has soon generated"):
            run = await evaluating_run(tmp_path, attempt)
            try:
                cut += await released_every_hundred_tokens(run, client, version)
                await assert_trajectories_are_whole(run, client, version)
            finally:
                await run.stop()
            if cut >= 8:
                break


async def released_every_hundred_tokens(run: Run, client: CountingClient, version: int) -> int:
    """Generates what this run asks for; returns how many trajectories were cut short."""
    rollouts = Rollouts(0, "a", client, cast(WorkClient, run), 8, MemberMetrics(CollectorRegistry()))
    cut, epoch = 0, 0
    while epoch == 0 or not run.rollout_complete:
        epoch += 1
        await run.open_rollout(1, version, (0,))
        run.serve(epoch)
        client.tokens = 0
        generating = asyncio.create_task(rollouts.generate(epoch, version))
        await reached(lambda: client.tokens >= 100 or run.rollout_complete, PATIENCE, "a hundred tokens")
        generating.cancel()
        cut += await rollouts.drain()
        await client.resume()
    return cut


async def assert_trajectories_are_whole(run: Run, client: EngineClient, version: int) -> None:
    rows, trajectories = await run._opened.buffer.live()
    prompts = {row.id: run._opened.corpus.prompt(row.kind, row.prompt) for row in rows}
    stored = await run._opened.buffer.generated(trajectory.id for trajectory in trajectories)
    for trajectory in trajectories:
        whole = await generated(client, lease(prompts[trajectory.group], 0, 200, trajectory.id), version)
        made = stored[trajectory.id]
        assert_same((made.tokens.tolist(), made.logprobs.tolist()), (list(whole.tokens), list(whole.logprobs)))


async def evaluating_run(directory: Path, attempt: int) -> Run:
    """A run at its end, where only eight held-out prompts are left to answer, with 200 tokens each."""
    tokenizer = {"characters": CHARACTERS}
    job = make_job(
        prompt_file(directory),
        iterations=1,
        model={"source": {"random": {"config": CONFIG, "tokenizer": tokenizer}}},
        engine={"maxModelLen": 512},
        rollout={"maxTokens": 200},
        data={"evaluation": {"path": str(prompt_file(directory, 8, "held-out.jsonl", first=50))}},
    )
    run = Run(job, directory / f"state-{attempt}")
    await run.prepare()
    return run


class OneLease:
    """Grants this lease, and then nothing more."""

    def __init__(self, granted: Lease) -> None:
        self._left = [granted]
        self.brought: asyncio.Future[Segment] = asyncio.get_running_loop().create_future()

    async def lease(self, request: LeaseRequest) -> LeaseGrant:
        if not self._left:
            await asyncio.Event().wait()
        return LeaseGrant(epoch=request.epoch, leases=(self._left.pop(),))

    async def store(self, batch: SegmentBatch) -> SegmentReceipt:
        (segment,) = batch.segments
        self.brought.set_result(segment)
        return SegmentReceipt(stored=(segment.trajectory,))


async def test_a_response_that_loops_is_stopped_while_it_is_generated(
    engine: Engine, client: EngineClient, version: int
) -> None:
    silent = [(name, torch.zeros_like(tensor)) for name, tensor in weights(reference_model(engine.model, seed=1))]
    engine.hand_over(version, silent)
    most = 450
    for epoch in attempts("the engine hears of the loop before it is done"):
        before = generated_tokens(engine)
        brought = await looping(client, lease(tuple(PROBE), 0, most), epoch, version)
        assert (len(brought.tokens), brought.finish) == (64, Finish.REPETITION)
        assert len(set(brought.tokens)) == 1
        assert [(span.version, span.count) for span in brought.versions] == [(version, 64)]
        if generated_tokens(engine) - before < most:
            break


async def looping(client: EngineClient, granted: Lease, epoch: int, version: int) -> Segment:
    """What is brought back of a lease of an engine that says the same for ever."""
    work = OneLease(granted)
    metrics = MemberMetrics(CollectorRegistry())
    rollouts = Rollouts(0, "a", client, cast(WorkClient, work), 8, metrics, Repetition(ngram=8, times=8))
    generating = asyncio.create_task(rollouts.generate(epoch, version))
    brought = await asyncio.wait_for(work.brought, PATIENCE)
    generating.cancel()
    await rollouts.drain()
    await client.resume()
    return brought
