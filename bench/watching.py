# SPDX-License-Identifier: Apache-2.0
"""Whether a run is slower while it is watched: the same small run with and without scrapes and traces, in turns.

Watched: every pod's metrics are scraped every five seconds (Prometheus usually takes thirty), and traces go to a
collector. Iterations of the same number do the same work, so they are compared with each other. Exit status 1 if the
iterations are slower by more than 1 %, beyond what chance explains.
"""

import argparse
import os
import random
import shutil
import statistics
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from otlp_receiver import receiving
from prometheus_server import pods_of
from rich.console import Console
from runs import ROOT, run

MOST = 0.01
_WARM = 2
_SCRAPE_SECONDS = 5.0
_LOOK_SECONDS = 0.5
_PODS = 2
_SMALL = {
    "spec.data.warmup": None,
    "spec.data.evaluation": None,
    "spec.rollout.promptsPerIteration": 8,
    "spec.rollout.samplesPerPrompt": 8,
    "spec.checkpoint.everyIterations": 1000,
    "spec.checkpoint.export": False,
}


@contextmanager
def watched(out: Path) -> Iterator[None]:
    """Scrape the run in ``out`` and collect its traces, until the block is left."""
    over = threading.Event()
    with receiving() as receiver:
        scraping = threading.Thread(target=_scrape, args=(out, over))
        scraping.start()
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.endpoint
        try:
            yield
        finally:
            del os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]
            over.set()
            scraping.join()
        if not receiver.spans:
            raise RuntimeError("no trace arrived: this run was not watched")


def _scrape(out: Path, over: threading.Event) -> None:
    while len(pods := pods_of(out)) < _PODS:
        if over.wait(_LOOK_SECONDS):
            return
    while not over.wait(_SCRAPE_SECONDS):
        for address, _ in pods.values():
            try:
                urllib.request.urlopen(f"http://{address}:9400/metrics").read()
            except OSError:  # the pod is not up yet, or has ended
                continue


def seconds(iterations: int, out: Path, watching: bool) -> list[float]:
    """The seconds of each iteration of one run, but for the first, which warm up."""
    shutil.rmtree(out, ignore_errors=True)
    example, changes = ROOT / "examples" / "chain-sum.yaml", {**_SMALL, "spec.iterations": iterations + _WARM}
    if watching:
        with watched(out):
            lines = run(example, changes, out)
    else:
        lines = run(example, changes, out)
    return [line["seconds"] for line in lines if line["loss"] is not None][_WARM:]


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """The middle 95 % of the medians of samples drawn from ``values``."""
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    return medians[round(0.025 * draws)], medians[round(0.975 * draws) - 1]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--iterations", type=int, default=20)
    arguments.add_argument("--pairs", type=int, default=2)
    arguments.add_argument("--out", type=Path, default=ROOT / "runs" / "watching")
    options = arguments.parse_args()
    slower: list[float] = []
    for pair in range(options.pairs):
        found = {}
        # Whatever drifts falls on both sides alike: the first of a pair is watched, then the second.
        for watching in (True, False) if pair % 2 == 0 else (False, True):
            found[watching] = seconds(options.iterations, options.out, watching)
            name = "watched" if watching else "alone"
            Console().print(f"pair {pair}, {name}: median {statistics.median(found[watching]):.3f} s an iteration")
        slower += [on / off - 1 for on, off in zip(found[True], found[False], strict=True)]
    low, high = interval(slower)
    Console().print(
        f"watched iterations are slower by {statistics.median(slower):+.2%} (95 %: {low:+.2%} to {high:+.2%}; "
        f"{len(slower)} pairs); wanted: less than {MOST:.0%}",
        soft_wrap=True,
    )
    return int(low > MOST)


if __name__ == "__main__":
    sys.exit(main())
