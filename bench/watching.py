# SPDX-License-Identifier: Apache-2.0
"""Whether iterations are slower while they are watched, in one small real run.

Every second iteration is scraped, every two seconds (Prometheus usually takes thirty), and half of the iterations are
traced, by OpenTelemetry's own sampling. Both are compared with the other iterations of the same run. Exit status 1 if
either makes an iteration slower by more than 1 %, beyond what chance explains.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import threading
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from otlp_receiver import Receiver, receiving
from prometheus_server import pods_of
from rich.console import Console
from runs import ROOT, run

MOST = 0.01
_WARM = 2
_SCRAPE_SECONDS = 2.0
_ANSWER_SECONDS = 10.0
_PODS = 2
_SMALL = {
    "spec.data.warmup": None,
    "spec.data.evaluation": None,
    "spec.rollout.promptsPerIteration": 4,
    "spec.rollout.samplesPerPrompt": 8,
    "spec.algorithm.mirrorDescent.batchPrompts": 4,
    "spec.checkpoint.everyIterations": 1000,
    "spec.checkpoint.export": False,
    "spec.orchestrator.env": [
        {"name": "OTEL_TRACES_SAMPLER", "value": "traceidratio"},
        {"name": "OTEL_TRACES_SAMPLER_ARG", "value": "0.5"},
    ],
}


@contextmanager
def watched(out: Path) -> Iterator[Receiver]:
    """Scrape and trace the run in ``out`` until the block is left."""
    over = threading.Event()
    scraping = threading.Thread(target=_scrape, args=(out, over))
    with receiving() as receiver:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.endpoint
        scraping.start()
        try:
            yield receiver
        finally:
            over.set()
            scraping.join()


def _scrape(out: Path, over: threading.Event) -> None:
    while len(pods := pods_of(out)) < _PODS:
        if over.wait(_SCRAPE_SECONDS):
            return
    while not over.wait(_SCRAPE_SECONDS):
        if not is_scraped(_begun(out)):
            continue
        for address, _ in pods.values():
            try:
                urllib.request.urlopen(f"http://{address}:9400/metrics", timeout=_ANSWER_SECONDS).read()
            except OSError:  # the pod is not up yet, or has ended
                continue


def is_scraped(iteration: int) -> bool:
    return iteration % 2 == 0


def _begun(out: Path) -> int:
    """The iteration in progress."""
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def expected(tokens: Mapping[int, int], seconds: Mapping[int, float]) -> dict[int, float]:
    """Each iteration's seconds over those that its tokens explain: how much is generated varies most."""
    line = statistics.linear_regression(list(tokens.values()), list(seconds.values()))
    return {number: seconds[number] / (line.intercept + line.slope * tokens[number]) for number in seconds}


def slowdown(seconds: Mapping[int, float], chosen: Collection[int]) -> tuple[float, float, float]:
    """By how much chosen iterations take longer than the others, of their medians; and the middle 95 % of draws."""
    on = [value for iteration, value in seconds.items() if iteration in chosen]
    off = [value for iteration, value in seconds.items() if iteration not in chosen]
    chance = random.Random(1)

    def median(values: list[float]) -> float:
        return statistics.median(chance.choices(values, k=len(values)))

    drawn = sorted(median(on) / median(off) - 1 for _ in range(2000))
    return statistics.median(on) / statistics.median(off) - 1, drawn[50], drawn[1949]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--iterations", type=int, default=60)
    arguments.add_argument("--out", type=Path, default=ROOT / "runs" / "watching")
    options = arguments.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    changes = {**_SMALL, "spec.iterations": options.iterations + _WARM}
    with watched(options.out) as receiver:
        lines = run(ROOT / "examples" / "chain-sum.yaml", changes, options.out)
    trained = [line for line in lines if line["loss"] is not None and line["iteration"] >= _WARM]
    seconds = {line["iteration"]: line["seconds"] for line in trained}
    relative = expected({line["iteration"]: line["tokens"] for line in trained}, seconds)
    traced = {int(span.attributes["tandem.iteration"]) for span in receiver.spans if span.name == "iteration"}
    scraped = {iteration for iteration in seconds if is_scraped(iteration)}
    Console().print(json.dumps({"seconds": seconds, "traced": sorted(traced)}), soft_wrap=True)
    worst = 0.0
    for name, chosen in (("scraped", scraped), ("traced", traced & set(seconds))):
        middle, low, high = slowdown(relative, chosen)
        worst = max(worst, low)
        Console().print(
            f"{len(chosen)} {name} iterations are slower than the {len(seconds) - len(chosen)} others by {middle:+.1%} "
            f"(95 %: {low:+.1%} to {high:+.1%}); wanted: less than {MOST:.0%}",
            soft_wrap=True,
        )
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
