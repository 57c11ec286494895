# SPDX-License-Identifier: Apache-2.0
"""A small job for tests of the orchestrator, and an engine that answers without a model."""

import itertools
import json
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

from tandem_api.environment import Job
from tandem_api.messages.work import Finish, Lease, LeaseRequest, Segment, SegmentBatch, SegmentReceipt, VersionSpan
from tandem_api.spec import RLJobSpec
from tandem_orchestrator.batches import digest
from tandem_orchestrator.run import Run

CHARACTERS = "0123456789+-= \nabcdefghijklmnopqrstuvwxyz"
EOS = 1
"""Id of the token that ends a response; characters follow from 2 on."""


def prompt_file(directory: Path, count: int = 16, name: str = "prompts.jsonl", first: int = 0) -> Path:
    """Records ``n + n =`` with their sums."""
    path = directory / name
    records = (
        {"id": f"{path.stem}-{n}", "domain": "sum", "prompt": f"{n} + {n} =", "answer": str(2 * n)}
        for n in range(first, first + count)
    )
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def make_job(prompts: Path, **parts: Any) -> Job:
    """A job with a random model and exact rewards; ``parts`` are laid over its spec, one level deep."""
    spec: dict[str, Any] = {
        "iterations": 3,
        "seed": 7,
        "model": {
            "source": {
                "random": {
                    "config": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
                    "tokenizer": {"characters": CHARACTERS},
                }
            }
        },
        "data": {"prompts": [{"path": str(prompts)}]},
        "engine": {"maxModelLen": 128},
        "rollout": {"promptsPerIteration": 4, "samplesPerPrompt": 2, "maxTokens": 32},
        "algorithm": {"mirrorDescent": {"tau": 0.1}},
        "rewards": [{"name": "exact", "exact": {"pattern": r"=?\s*(-?\d+)$"}}],
    }
    for name, part in parts.items():
        spec[name] = {**spec.get(name, {}), **part} if isinstance(part, dict) else part
    return Job("default", "test", "uid", RLJobSpec.model_validate(spec))


def token_ids(text: str) -> tuple[int, ...]:
    """The tokens of ``text`` in the test model's tokenizer."""
    return tuple(CHARACTERS.index(character) + 2 for character in text)


def text_of(tokens: Iterable[int]) -> str:
    """The text of tokens, special ones left out."""
    return "".join(CHARACTERS[token - 2] for token in tokens if token >= 2)


def segment(
    lease: Lease, tokens: tuple[int, ...], finish: Finish, version: int = 0, offset: int | None = None
) -> Segment:
    """What an engine sends back for a lease."""
    return Segment(
        trajectory=lease.trajectory,
        offset=lease.offset if offset is None else offset,
        tokens=tokens,
        logprobs=tuple(-0.5 for _ in tokens),
        versions=(VersionSpan(version=version, count=len(tokens)),) if tokens else (),
        finish=finish,
    )


def right_answer(lease: Lease) -> tuple[int, ...]:
    """The sum that the prompt of a lease asks for, and the end of the response."""
    left, _, right, _ = text_of(lease.tokens[: len(lease.tokens) - lease.offset]).split(" ")
    return (*token_ids(f"={int(left) + int(right)}"), EOS)


class Engine:
    """A member that leases and answers; ``answer`` gives the whole response of a trajectory."""

    def __init__(
        self, run: Run, epoch: int, member: int = 0, answer: Callable[[Lease], tuple[int, ...]] = right_answer
    ) -> None:
        self.run = run
        self.epoch = epoch
        self.member = member
        self.answer = answer
        self.incarnation = f"{member}-{next(_incarnations)}"

    async def lease(self, capacity: int = 64) -> tuple[Lease, ...]:
        request = LeaseRequest(member=self.member, incarnation=self.incarnation, epoch=self.epoch, capacity=capacity)
        return (await self.run.lease(request)).leases

    async def store(self, *segments: Segment) -> SegmentReceipt:
        batch = SegmentBatch(member=self.member, incarnation=self.incarnation, epoch=self.epoch, segments=segments)
        return await self.run.store(batch)

    async def work(self, version: int, capacity: int = 64) -> int:
        """Lease once and answer all of it; returns how many trajectories that were."""
        leases = await self.lease(capacity)
        if leases:
            await self.store(*(self.respond(lease, version) for lease in leases))
        return len(leases)

    def respond(self, lease: Lease, version: int) -> Segment:
        """The rest of the answer, as much of it as the lease allows."""
        rest = self.answer(lease)[lease.offset :]
        allowed = rest[: lease.max_new_tokens]
        return segment(lease, allowed, Finish.STOP if len(allowed) == len(rest) else Finish.LENGTH, version)

    async def exhaust(self, version: int) -> int:
        """Work until nothing is leased any more."""
        total = 0
        while done := await self.work(version):
            total += done
        return total


def long_tailed(seed: int, longest: int) -> Callable[[Lease], tuple[int, ...]]:
    """Responses whose lengths have a heavy tail, fixed by the trajectory's name."""

    def answer(lease: Lease) -> tuple[int, ...]:
        drawn = random.Random(f"{seed}/{lease.trajectory}").lognormvariate(1.5, 1.2)
        return (*token_ids("a" * min(longest - 1, int(drawn))), EOS)

    return answer


_incarnations = itertools.count()


@asynccontextmanager
async def running(directory: Path, **parts: Any) -> AsyncIterator[Run]:
    """A prepared run; opened again in the same directory it goes on."""
    prompts = prompt_file(directory, 24)
    run = Run(make_job(prompts, **parts), directory / "state")
    await run.prepare()
    yield run
    await run.stop()


async def serving(run: Run) -> Engine:
    """The one engine of a run whose first rollout is open."""
    await run.open_rollout(0, 0, (0,))
    run.serve(1)
    return Engine(run, 1)


async def tensors_of(run: Run, iteration: int) -> dict[str, np.ndarray]:
    body = await run.batch(iteration)
    assert body is not None
    found: dict[str, np.ndarray] = load(body.content)
    assert digest(found) == body.digest
    return found
