# SPDX-License-Identifier: Apache-2.0
"""What ``tandem buffer`` shows, laid out for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text

_STATES = ("waiting", "partial", "finished", "scored", "batched", "dropped")


def overview_page(said: Mapping[str, Any]) -> RenderableType:
    """``ls``."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("iteration", "trajectories", "tokens", "batch", "reward", "correct", "held out"):
        table.add_column(title, justify="left" if title in ("trajectories", "batch") else "right")
    for row in said["iterations"]:
        batch, held_out = row["batch"] or {}, row["evaluation"] or {}
        table.add_row(
            str(row["iteration"]),
            ", ".join(f"{row['states'][state]:,} {state}" for state in _STATES if state in row["states"]),
            f"{row['tokens']:,}",
            _batch(row),
            _share(batch.get("reward_mean")),
            _share(batch.get("accuracy_mean")),
            _share(held_out.get("accuracy")),
        )
    saved = max(said["checkpoints"], key=int, default=None)
    return Group(
        Text(f"{said['path']}: {decimal(said['bytes'])} and {decimal(said['log_bytes'])} of log, "
             f"schema {said['schema']}, {said['prompts']:,} prompts drawn"),
        table,
        Text("no checkpoint is durable" if saved is None
             else f"iterations before {saved} are in {said['checkpoints'][saved]}"),
    )  # fmt: skip


def trajectory_page(said: Mapping[str, Any]) -> RenderableType:
    """``show``."""
    facts = Table(box=None, show_header=False)
    for name, value in {**said["columns"], "reward": said["reward"]}.items():
        if value is not None:
            facts.add_row(name, escape(str(value)))
    parts: list[RenderableType] = [facts]
    for segment in said["segments"]:
        mean = segment["logprob_mean"]
        weights = ", ".join(f"{count} by weights {version}" for version, count in segment["versions"])
        certainty = "" if mean is None else f", mean log-prob {mean:.3f}"
        parts.append(
            Text(f"\nfrom {segment['offset']}: {weights or 'nothing'}; {segment['finish']}{certainty}", "bold")
        )
        text = segment["text"]
        parts.append(Text(text if text is not None else " ".join(map(str, segment["tokens"]))))
    if any(segment["text"] is None for segment in said["segments"]):
        parts.append(Text("\nToken ids, since the run's tokenizer is not at hand; name it by --tokenizer.", "dim"))
    return Group(*parts)


def _batch(row: Mapping[str, Any]) -> str:
    if row["batch"] is None:
        return ""
    return "pruned" if row["pruned"] else "durable" if row["durable"] else "held"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
