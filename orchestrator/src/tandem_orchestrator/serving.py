# SPDX-License-Identifier: Apache-2.0
"""Bodies of batches, built from the buffer: the same batch is the same bytes' worth of tensors, however often."""

import asyncio

from tandem_api.errors import RunFailed
from tandem_orchestrator.batches import Body, Sample, batch_body
from tandem_orchestrator.buffer import Buffer, Kind
from tandem_orchestrator.corpus import Corpus
from tandem_orchestrator.results import Members


async def build_body(iteration: int, members: Members, buffer: Buffer, corpus: Corpus) -> Body:
    """The batch with these members."""
    names = [name for name, _, _ in members]
    prompts = await buffer.prompts_of(names)
    generated = await buffer.generated(names)
    samples = [
        Sample(corpus.prompt(Kind.TRAIN, prompts[name]), generated[name], reward, group)
        for name, reward, group in members
    ]
    return await asyncio.to_thread(batch_body, iteration, samples)


class BatchServer:
    """Hands out batches by iteration, the newest one from memory."""

    def __init__(self, buffer: Buffer, corpus: Corpus) -> None:
        self._buffer = buffer
        self._corpus = corpus
        self._lock = asyncio.Lock()
        self._newest: tuple[int, Body] | None = None

    async def body(self, iteration: int) -> Body | None:
        """The batch of ``iteration``; ``None`` if there is none yet.

        Raises:
            RunFailed: it is not what it was when it was closed.
        """
        async with self._lock:
            if self._newest is None or self._newest[0] != iteration:
                row = await self._buffer.batch(iteration)
                if row is None:
                    return None
                body = await build_body(iteration, row.members, self._buffer, self._corpus)
                if body.digest != row.digest:
                    raise RunFailed(
                        f"batch {iteration} has digest {body.digest}, but had {row.digest} when it was closed: its "
                        "tokens were pruned, or prompts or tokenizer changed since"
                    )
                self._newest = (iteration, body)
            return self._newest[1]
