# SPDX-License-Identifier: Apache-2.0
"""A buffer's trajectories as a Parquet file, one a row."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tandem_orchestrator.buffer.reading import Reader
from tandem_orchestrator.buffer.rows import Generated

COLUMNS: tuple[tuple[str, pa.DataType, str], ...] = (
    ("id", pa.string(), "Name of the trajectory, GROUP-SAMPLE."),
    ("group", pa.int64(), "Number of its group: one draw of a prompt, whose samples are compared with each other."),
    ("sample", pa.int32(), "Number within the group."),
    ("prompt", pa.string(), "Id of the prompt's record."),
    ("kind", pa.string(), "train or evaluation."),
    ("state", pa.string(), "waiting, partial, finished, scored, batched or dropped."),
    ("drawn", pa.int64(), "Iteration for which it was drawn."),
    ("batch", pa.int64(), "Iteration in whose batch its group was trained, or in which it was given up; null before."),
    ("length", pa.int64(), "Generated tokens; those of pruned batches are counted, but no longer there."),
    ("oldest", pa.int64(), "Oldest weight version that wrote any of it."),
    ("finish", pa.string(), "Why it ended: Stop, Length or Repetition; null while it goes on."),
    ("score", pa.float64(), "What the rewards said of it; null without a verdict."),
    ("correct", pa.bool_(), "Whether it counts as correct; null without a verdict."),
    ("error", pa.string(), "Why it has no verdict, or was given up."),
    ("reward", pa.float64(), "The reward that it was trained with, length penalty included; null if in no batch."),
    ("tokens", pa.list_(pa.int32()), "Generated token ids."),
    ("logprobs", pa.list_(pa.float32()), "The engine's log-prob of each, natural logarithm."),
    ("versions", pa.list_(pa.int32()), "The weight version that wrote each."),
    ("text", pa.string(), "The tokens as text; null where the model's tokenizer is not at hand."),
)

SCHEMA = pa.schema([pa.field(name, kind, metadata={"description": text}) for name, kind, text in COLUMNS])


def export(reader: Reader, out: Path, batch: int | None, text: Callable[[list[int]], str] | None) -> int:
    """Write all trajectories, or those of ``batch``, to ``out``; returns how many. Memory does not grow with them.

    Raises:
        OSError: ``out`` cannot be written; nothing is left there.
    """
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    count = 0
    try:
        with pq.ParquetWriter(unfinished, SCHEMA, compression="zstd") as writer:
            for piece in reader.trajectories(batch):
                writer.write_batch(pa.RecordBatch.from_pylist([_row(*one, text) for one in piece], SCHEMA))
                count += len(piece)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _row(columns: Mapping[str, Any], made: Generated, text: Callable[[list[int]], str] | None) -> dict[str, Any]:
    tokens = made.tokens.tolist()
    return {
        **columns,
        "tokens": tokens,
        "logprobs": made.logprobs.tolist(),
        "versions": made.versions.tolist(),
        "text": text(tokens) if text else None,
    }
