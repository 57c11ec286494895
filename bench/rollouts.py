# SPDX-License-Identifier: Apache-2.0
"""Rollouts with a heavy tail of lengths: synchronous, partial, and the ideal packing.

First a real vLLM is measured (step time by batch, prefill, streaming) and rolls out by itself, with the sidecar's and
the orchestrator's own code. Then many engines of that speed are simulated: the scheduler is the orchestrator's own,
engines and clock are not (bench/rollout_simulation.py). The ideal are engines that always run at their best batch.
"Utilisation" is the share of that capacity which is used, be it for tokens or for computing prefixes anew after a
change of weights; "trained" is the rate of tokens that are trained on beside the ideal one, so those prefixes are lost.
"""

import argparse
import asyncio
import dataclasses
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import structlog
from engine_speed import LONGEST, MOST, ScriptedEngine, scripted_engine, speed_curve, streaming_cost
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table
from rollout_simulation import (
    UNIT,
    Iteration,
    SimulatedEngine,
    Simulation,
    SpeedCurve,
    lognormal,
    long_thoughts,
)
from runs import ROOT

from tandem_api.environment import Job
from tandem_api.spec import RLJobSpec
from tandem_orchestrator.run import Run
from tandem_sidecar.metrics import MemberMetrics
from tandem_sidecar.rollouts import Rollouts
from tandem_sidecar.work_client import WorkClient

SPEED = ROOT / "runs" / "rollouts" / "speed.json"
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where simulated buffers lie: waiting for a disk takes no simulated time, only ours."""

SAMPLES = 8
LONGEST_RESPONSE = 32768
BUDGET = 16384
OVERLAP = 8
FILLING = 5
"""First iterations of partial rollouts, in which long responses are begun and none is due yet."""

LEAST_UTILISATION = 0.9
LEAST_SPEEDUP = 2.0
TAILS = {"log-normal": lognormal, "long chains of thought": long_thoughts}
REAL_SCALE = LONGEST_RESPONSE * 2 // LONGEST
"""The real run's responses are the long chains of thought, so many times shorter."""


def job(directory: Path, prompts: int, longest: int, budget: int | None) -> Job:
    """A job of which only the rollouts matter; its vocabulary has room for any token of the real engine's."""
    path = directory / "prompts.jsonl"
    records = (
        {"id": f"p{n}", "domain": "none", "prompt": str(n), "answer": "none"} for n in range(max(8000, prompts * 24))
    )
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    rollout: dict[str, Any] = {"promptsPerIteration": prompts, "samplesPerPrompt": SAMPLES, "maxTokens": longest}
    if budget is not None:
        rollout |= {"tokenBudget": budget, "overlapIterations": OVERLAP}
    spec = {
        "iterations": 1000,
        "model": {
            "source": {
                "random": {
                    "config": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
                    "tokenizer": {"characters": "0123456789" + "".join(chr(0x4E00 + n) for n in range(1000))},
                }
            }
        },
        "data": {"prompts": [{"path": str(path)}]},
        "engine": {"maxModelLen": LONGEST},
        "rollout": rollout,
        "algorithm": {"mirrorDescent": {"tau": 0.1}, "sampling": {"prioritized": False}},
        "rewards": [{"name": "none", "exact": {"pattern": "none"}}],
    }
    return Job("default", "rollouts", "uid", RLJobSpec.model_validate(spec))


async def simulated(
    curve: SpeedCurve, engines: int, lengths: Callable[[str], int], budget: int | None, iterations: int
) -> list[Iteration]:
    """Iterations of ``engines`` with 64 samples each, after the first ones."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        directory = Path(name)
        units = budget // UNIT if budget else None
        wanted = job(directory, engines * MOST // SAMPLES, LONGEST_RESPONSE // UNIT, units)
        members = [SimulatedEngine(member, curve, MOST, lengths) for member in range(engines)]
        simulation = Simulation(wanted, directory, members)
        filling = FILLING if budget else 0
        done = [await simulation.iterate(iteration) for iteration in range(filling + iterations)]
        await simulation.close()
    return done[filling:]


async def real(client: ScriptedEngine, budget: int | None, iterations: int) -> list[Iteration]:
    """The same on one real engine: its sidecar's rollouts against an orchestrator's run in this process."""
    lengths = long_thoughts(LONGEST_RESPONSE)
    client.lengths = lambda trajectory: max(1, lengths(trajectory) * UNIT // REAL_SCALE)
    longest = LONGEST_RESPONSE // REAL_SCALE
    with tempfile.TemporaryDirectory() as name:
        run = Run(job(Path(name), MOST // SAMPLES, longest, budget and budget // REAL_SCALE), Path(name) / "state")
        await run.prepare()
        rollouts = Rollouts(0, "a", client, cast(WorkClient, run), MOST, MemberMetrics(CollectorRegistry()))
        filling = FILLING if budget else 1
        done = [await _real_iteration(run, rollouts, client, n) for n in range(filling + iterations)]
        await run.stop()
    return done[filling:]


async def _real_iteration(run: Run, rollouts: Rollouts, client: ScriptedEngine, iteration: int) -> Iteration:
    await client.call_weights(iteration)
    began = time.monotonic()
    await run.open_rollout(iteration, iteration, (0,))
    run.serve(iteration + 1)
    generating = asyncio.create_task(rollouts.generate(iteration + 1, iteration))
    await run.rollout_full()
    generating.cancel()
    await rollouts.drain()
    summary = await run.close_rollout()
    seconds = time.monotonic() - began
    await client.resume()
    assert summary is not None
    return Iteration(seconds, summary.tokens, summary.age_max)


@dataclasses.dataclass
class Row:
    """The iterations of one way to roll out; ``best`` is the rate of engines that always run at their best."""

    lengths: str
    engines: str
    best: float
    iterations: list[Iteration]

    @property
    def per_token(self) -> float:
        return sum(done.seconds for done in self.iterations) / sum(done.tokens for done in self.iterations)

    @property
    def of_ideal(self) -> float:
        return 1 / (self.per_token * self.best)

    @property
    def utilisation(self) -> float | None:
        """Over all iterations, by their time."""
        used = [done.utilisation * done.seconds for done in self.iterations if done.utilisation is not None]
        return sum(used) / sum(done.seconds for done in self.iterations) if used else None


def add(table: Table, synchronous: Row, partial: Row) -> bool:
    """Three lines; whether partial rollouts are as good as wanted."""
    for name, row in (("synchronous", synchronous), ("partial", partial)):
        seconds = sum(done.seconds for done in row.iterations) / len(row.iterations)
        speedup = synchronous.per_token / row.per_token
        age = max(done.age for done in row.iterations)
        share = "" if row.utilisation is None else f"{row.utilisation:.1%}"
        figures = f"{row.of_ideal:.1%}", f"{1e6 * row.per_token:.1f}", f"{speedup:.2f}", f"{age}"
        table.add_row(row.lengths, row.engines, name, f"{seconds:.1f}", share, *figures)
    mean = sum(done.tokens for done in partial.iterations) / len(partial.iterations)
    ideal = (
        f"{mean / partial.best:.1f}",
        "100%",
        "100%",
        f"{1e6 / partial.best:.1f}",
        f"{synchronous.per_token * partial.best:.2f}",
    )
    table.add_row(partial.lengths, partial.engines, "ideal packing", *ideal, "")
    table.add_section()
    used = partial.utilisation
    return used is not None and used >= LEAST_UTILISATION and synchronous.per_token / partial.per_token >= LEAST_SPEEDUP


async def measure(table: Table, console: Console, iterations: int) -> SpeedCurve:
    """Measure a real vLLM, and let it roll out."""
    async with scripted_engine() as client:
        curve = await speed_curve(client)
        whole, streamed = await streaming_cost(client)
        console.print(f"{MOST} sequences: {whole:,.0f} tokens/s in whole answers, {streamed:,.0f} streamed")
        pair = [
            Row("long chains / 32", "1 real", curve.best(MOST), await real(client, budget, iterations))
            for budget in (None, BUDGET)
        ]
    add(table, *pair)
    return curve


async def bench(options: argparse.Namespace) -> int:
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(
        "lengths", "engines", "rollouts", "iteration s", "utilisation", "trained", "s per 1M trained", "x", "oldest"
    )
    if options.curve is not None:
        curve = SpeedCurve(**json.loads(options.curve.read_text()))
    else:
        curve = await measure(table, console, options.iterations)
        SPEED.parent.mkdir(parents=True, exist_ok=True)
        SPEED.write_text(json.dumps(dataclasses.asdict(curve)))
    steps = ", ".join(f"{batch}: {1000 * step:.1f}" for batch, step in zip(curve.batches, curve.seconds, strict=True))
    console.print(
        f"vLLM on a CPU, the demo's model: ms of a step by sequences {steps}; prefill {curve.prefill:,.0f} tokens/s"
    )
    good = True
    for engines in options.engines:
        for name, tail in TAILS.items():
            pair = [
                await simulated(curve, engines, tail(LONGEST_RESPONSE), budget, options.iterations)
                for budget in (None, BUDGET)
            ]
            rows = [Row(name, f"{engines} simulated", engines * curve.best(MOST), done) for done in pair]
            good &= add(table, *rows)
    console.print(table)
    console.print(
        f"wanted of partial ones, simulated: {LEAST_UTILISATION:.0%} utilisation, {LEAST_SPEEDUP:.0f} x synchronous"
    )
    return 0 if good else 1


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--engines", type=int, nargs="+", default=[8, 64])
    arguments.add_argument("--iterations", type=int, default=8)
    arguments.add_argument(
        "--curve", type=Path, help=f"simulate only, with the speed that an earlier run left in {SPEED}"
    )
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    return asyncio.run(bench(arguments.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
