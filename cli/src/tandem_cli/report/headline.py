# SPDX-License-Identifier: Apache-2.0
"""What the report says in words and figures: headline cards, a sentence on the run, facts of the job."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tandem_cli.report.data import RunData, Summary

_NOTHING = "–"
_FACTS = (
    ("Iterations", "iterations"),
    ("Seed", "seed"),
    ("Prompts an iteration", "rollout.promptsPerIteration"),
    ("Samples a prompt", "rollout.samplesPerPrompt"),
    ("Most tokens a response", "rollout.maxTokens"),
    ("Token budget", "rollout.tokenBudget"),
    ("Temperature", "rollout.temperature"),
    ("Objective", "algorithm"),
    ("Learning rate", "trainer.optimizer.learningRate"),
    ("Parallelism", "trainer.parallelism"),
    ("Hybrid pods", "hybrid.replicas"),
    ("Accelerators", "hybrid.accelerators"),
    ("Engine release", "engine.release"),
    ("Handoff", "handoff"),
    ("Checkpoint every", "checkpoint.everyIterations"),
    ("Prompts", "data.prompts"),
    ("Held-out set", "data.evaluation"),
)


@dataclass(frozen=True, slots=True)
class Figure:
    main: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """One headline; a figure for each run."""

    name: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    title: str
    rows: tuple[Fact, ...]


def cards(runs: Sequence[RunData]) -> list[Card]:
    """The headline figures, those of two runs beside each other."""
    makers: dict[str, Callable[[RunData, Summary], Figure]] = {
        "Held-out accuracy": _accuracy,
        "Iterations": _iterations,
        "Time": lambda _, summary: Figure(_duration(summary.seconds), "in all phases"),
        "Utilisation": lambda _, summary: Figure(
            _percent(summary.utilisation), "of the time held is rollout or training work"
        ),
        "Switching": lambda _, summary: Figure(_percent(summary.switch_share), "of the time in release and handoff"),
        "Throughput": lambda _, summary: Figure(_whole(summary.tokens_per_second), "tokens/s, all phases counted"),
    }
    made = {name: [make(run, run.summary) for run in runs] for name, make in makers.items()}
    return [
        Card(name, tuple(figure if figure.main != _NOTHING else Figure(_NOTHING) for figure in figures))
        for name, figures in made.items()
    ]


def subtitle(run: RunData) -> str:
    """The model and when the run was."""
    source = run.spec.get("model", {}).get("source", {})
    model: dict[str, Any] = next(iter(source.values()), {}) if isinstance(source, dict) else {}
    name = model.get("path") or ", ".join((model.get("config") or {}).get("architectures") or [])
    parts = [name, run.spec.get("model", {}).get("dtype", "")]
    if run.status.start_time:
        parts.append(f"started {run.status.start_time}")
    if run.status.restarts:
        parts.append(f"{run.status.restarts} restarts")
    return " · ".join(part for part in parts if part)


def facts(runs: Sequence[RunData]) -> Facts:
    """The settings that matter of one run, or those in which two differ."""
    if len(runs) == 1:
        rows = [
            Fact(name, (_text(_at(runs[0].spec, path)),))
            for name, path in _FACTS
            if _at(runs[0].spec, path) is not None
        ]
        return Facts("The job", tuple(rows))
    specs = [flat(run.spec) for run in runs]
    names = sorted({name for spec in specs for name in spec})
    rows = [
        Fact(name, tuple(_text(spec.get(name)) for spec in specs))
        for name in names
        if len({_text(spec.get(name)) for spec in specs}) > 1
    ]
    return Facts("What differs in the spec", tuple(rows))


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of a spec by its field path: ``{"a": {"b": [1]}}`` -> ``{"a.b[0]": 1}``."""
    if isinstance(value, dict):
        parts = ((f"{path}.{key}" if path else str(key), item) for key, item in value.items())
    elif isinstance(value, list):
        parts = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    else:
        return {path: value}
    return {name: leaf for prefix, item in parts for name, leaf in flat(item, prefix).items()}


def _accuracy(_: RunData, summary: Summary) -> Figure:
    before, after = summary.accuracy_before, summary.accuracy_after
    if before is None or after is None:
        return Figure(_NOTHING)
    return Figure(
        f"{100 * before:.1f} → {100 * after:.1f} %", f"{100 * (after - before):+.1f} points".replace("-", "−")
    )


def _iterations(run: RunData, summary: Summary) -> Figure:
    wanted = run.spec.get("iterations")
    return Figure(str(summary.iterations), f"of {wanted}" if wanted else "")


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if not whole:
        return _NOTHING
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _percent(share: float | None) -> str:
    return _NOTHING if share is None else f"{100 * share:.1f} %"


def _whole(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:,.0f}"


def _at(spec: dict[str, Any], path: str) -> Any:
    value: Any = spec
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(value: Any) -> str:
    match value:
        case [only]:
            return _text(only)
        case list():
            return "; ".join(map(_text, value))
        case dict() if len(value) == 1 and isinstance(inner := next(iter(value.values())), dict):
            return f"{next(iter(value))}: {_text(inner)}"
        case dict():
            return ", ".join(f"{name} {leaf}" for name, leaf in flat(value).items())
    return _NOTHING if value is None else str(value)
