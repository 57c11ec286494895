# SPDX-License-Identifier: Apache-2.0
"""Ways of bringing new weights into a running engine, side by side; run as ``make bench-handoff``.

One vLLM process, one model. Each way is repeated, and after each the engine's log-probs must be those that the weights
have. Then: how the time grows with the model's size, between two processes, and a plot of it.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from engine_baselines import Layout, broadcast, join, unpacked
from engine_fixture import PROBE, Engine, write_model
from handoff_plot import Point, draw
from handoff_table import (
    GLOO,
    LOADED,
    LOADING,
    MAPPED,
    MEMCPY,
    OWN,
    RESTART,
    SAFETENSORS,
    TANDEM,
    Row,
    conditions,
    table,
    written,
)
from ports import free_port
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tandem_api.spec.model import DType
from tandem_handoff import Exporter, Verify
from tandem_handoff.bench import Handoff, Receiver, Use, compared, filled, transformer_like

Tensors = list[tuple[str, torch.Tensor]]
CPU = torch.device("cpu")
PAGE, PLOT = Path("docs/performance.md"), Path("docs/figures/handoff-scaling.svg")
BUCKET = 64 * 2**20
MODEL: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": False,
    "initializer_range": 0.05,
}
WORKER = ["--worker-extension-cls", "engine_baselines.Baselines"]
SIZES_MIB = (40, 100, 250, 500, 1000, 2000)


class Trainer:
    """The weights, in two versions, and every way to bring them over."""

    def __init__(self, model: Path, tmpfs: Path) -> None:
        config = AutoConfig.from_pretrained(model)
        self.model = model
        self.tmpfs = tmpfs
        self.versions: list[Tensors] = []
        with torch.device("meta"):
            shapes = {name: tuple(it.shape) for name, it in AutoModelForCausalLM.from_config(config).named_parameters()}
        for seed in (1, 2):
            noise = torch.randn(2**21, generator=torch.Generator().manual_seed(seed)).mul(0.05).bfloat16()
            self.versions.append([(name, filled(shape, noise)) for name, shape in shapes.items()])
        self.nbytes = sum(tensor.nbytes for _, tensor in self.versions[0])

    def write(self, version: int) -> None:
        """Writes a version as safetensors to the tmpfs."""
        save_file(dict(self.versions[version]), self.tmpfs / "model.safetensors", metadata={"format": "pt"})


class Ways:
    """Each method brings version 0 or 1 into the engine and returns its seconds by part; the first is the whole."""

    def __init__(self, engine: Engine, trainer: Trainer, exporter: Exporter) -> None:
        self.engine, self.trainer, self.exporter = engine, trainer, exporter
        self._version = 0
        self._group: Any = None
        self._threads = ThreadPoolExecutor(1)

    def tandem(self, version: int) -> dict[str, float]:
        """From the request for the update to the engine back in service."""
        self._version += 1
        began = time.perf_counter()
        exported = self._threads.submit(self.exporter.export, self._version, self.trainer.versions[version], 120.0)
        answer = self.engine.update(self._version, 120.0)
        assert answer.status_code == 200, answer.text
        exported.result()
        self.engine.finish(self._version)
        whole = time.perf_counter() - began
        seconds = self.engine.report()["seconds"]
        # While the engine loads a bucket the next one is filled: what loading does not hide is Tandem's own.
        loading, own = seconds["load"] + seconds["finish"], seconds["receive"] - seconds["load"]
        return {"whole": whole, LOADING: loading, "not hidden by it": own, "requests": whole - loading - own}

    def safetensors(self, version: int) -> dict[str, float]:
        """Save to tmpfs, and vLLM's own reload from there."""
        began = time.perf_counter()
        self.trainer.write(version)
        written = time.perf_counter()
        self._paused("reload_weights", kwargs={"weights_path": str(self.trainer.tmpfs)})
        ended = time.perf_counter()
        return {"whole": ended - began, "write": written - began, "reload": ended - written}

    def gloo(self, version: int) -> dict[str, float]:
        """Broadcast of packed buckets over loopback, and vLLM's own reload from them."""
        if self._group is None:
            port = free_port()
            joined = self._call("baseline_join", args=[port])
            self._group = join(port, 0)
            joined.result()
        buckets = _packed_layout(self.trainer.versions[version])
        began = time.perf_counter()
        loaded = self._threads.submit(self._paused, "baseline_broadcast", args=[buckets])
        tensors = dict(self.trainer.versions[version])
        for layout in buckets:
            packed = torch.empty(sum(tensors[name].nbytes for name, _, _ in layout), dtype=torch.uint8)
            for name, place in unpacked(packed, layout):
                place.copy_(tensors[name])
            broadcast(self._group, packed)
        loaded.result()
        return {"whole": time.perf_counter() - began}

    def logprobs(self) -> torch.Tensor:
        """What the engine computes: with random weights it differs between versions."""
        return self.engine.generate(PROBE, 4).logprobs

    def _call(self, method: str, **arguments: Any) -> "Future[None]":
        return self._threads.submit(self._request, method, arguments)

    def _paused(self, method: str, **arguments: Any) -> None:
        self.engine.call("/pause").raise_for_status()
        self._request(method, arguments)
        self.engine.call("/resume").raise_for_status()

    def _request(self, method: str, arguments: dict[str, Any]) -> None:
        answer = self.engine.call("/collective_rpc", {"method": method} | arguments)
        assert answer.status_code == 200, answer.text


def side_by_side(trainer: Trainer, directory: Path, rounds: int) -> list[Row]:
    """The engine's rows, by turns; a restart is what its start took, with the weights in the tmpfs."""
    arguments = [*WORKER, "--load-format", "auto", "--model", str(trainer.tmpfs)]
    began = time.perf_counter()
    engine = Engine(trainer.model, directory, "bfloat16", arguments)
    try:
        engine.wait()
        rows = show([Row(RESTART, [time.perf_counter() - began], trainer.nbytes, {})])
        with engine.exporter(BUCKET, Verify.NAMES) as names:
            ways = Ways(engine, trainer, names)
            actions = {TANDEM: ways.tandem, SAFETENSORS: ways.safetensors, GLOO: ways.gloo}
            rows += _measured(ways, actions, rounds)
        with engine.exporter(BUCKET, Verify.CHECKSUMS) as checked:
            ways.exporter = checked
            rows += _measured(ways, {"Tandem, with checksums": ways.tandem}, rounds)
    finally:
        engine.close()
    return rows


def show(rows: list[Row]) -> list[Row]:
    """Prints rows as soon as they are known; the same rows."""
    print(*rows, sep="\n", flush=True)
    return rows


def _measured(ways: Ways, actions: Mapping[str, Callable[[int], dict[str, float]]], rounds: int) -> list[Row]:
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in actions}
    right: list[torch.Tensor] = []
    for number in range(rounds + 1):
        for name, action in actions.items():
            for version in (0, 1):
                parts = action(version)
                right += [ways.logprobs()] if len(right) == version else []
                torch.testing.assert_close(ways.logprobs(), right[version], msg=f"{name} brought something else")
                if number:  # the first round touches memory for the first time
                    seen[name].append(parts)
    assert not torch.equal(right[0], right[1])
    rows = []
    for name, found in seen.items():
        medians = {part: statistics.median(parts[part] for parts in found) for part in found[0] if part != "whole"}
        rows.append(Row(name, [parts["whole"] for parts in found], ways.trainer.nbytes, medians))
    return show(rows)


def copies(tensors: Tensors, rounds: int) -> Row:
    """The limit: the same tensors copied once within this process, into memory that was used before."""
    targets = [torch.empty_like(tensor) for _, tensor in tensors]
    seconds = [_copy(tensors, targets) for _ in range(rounds + 1)][1:]
    return Row(MEMCPY, seconds, sum(tensor.nbytes for _, tensor in tensors), {})


def own_work(tensors: Tensors, rounds: int) -> list[Row]:
    """Tandem without an engine: a process that maps every bucket and looks at none, beside the copy."""
    targets = [torch.empty_like(tensor) for _, tensor in tensors]
    nbytes = sum(tensor.nbytes for _, tensor in tensors)
    rows = []
    for verify in Verify:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "handoff-0.sock"
            with Exporter(path, BUCKET, verify=verify) as exporter, Receiver(path, CPU) as receiver:
                handoff = Handoff(exporter, receiver, tensors, Use.LOOK)
                step = compared("", handoff, nbytes, "", lambda: _copy(tensors, targets), 3 * rounds)
        assert step.of_limit is not None
        rows.append(Row(f"{OWN}, {verify}", [step.seconds], nbytes, {}, of_copy=step.of_limit))
    return rows


def scaling(sizes_mib: tuple[int, ...], rounds: int) -> list[Point]:
    """Seconds by size, of a copy, of Tandem's own work, and with a receiver that copies into parameters, by turns."""
    points = []
    for mib in sizes_mib:
        tensors = transformer_like(mib * 2**20, CPU, hidden=512 if mib < 100 else 1024)
        targets = [torch.empty_like(tensor) for _, tensor in tensors]
        nbytes = sum(tensor.nbytes for _, tensor in tensors)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "handoff-0.sock"
            with Exporter(path, BUCKET) as exporter, Receiver(path, CPU) as receiver:
                actions: dict[str, Callable[[], float]] = {
                    MEMCPY: partial(_copy, tensors, targets),
                    MAPPED: Handoff(exporter, receiver, tensors, Use.LOOK),
                    LOADED: Handoff(exporter, receiver, tensors, Use.LOAD),
                }
                seconds = [[action() for action in actions.values()] for _ in range(2 * rounds + 1)][1:]
        for name, found in zip(actions, zip(*seconds, strict=True), strict=True):
            points.append(Point(name, nbytes, statistics.median(found)))
            print(f"{name:26}{nbytes / 1e6:8.0f} MB {points[-1].seconds:8.3f} s", flush=True)
    return points


def _copy(tensors: Tensors, targets: list[torch.Tensor]) -> float:
    began = time.perf_counter()
    for (_, tensor), target in zip(tensors, targets, strict=True):
        target.copy_(tensor)
    return time.perf_counter() - began


def _packed_layout(tensors: Tensors) -> list[Layout]:
    buckets: list[Layout] = [[]]
    used = 0
    for name, tensor in tensors:
        if buckets[-1] and used + tensor.nbytes > BUCKET:
            buckets.append([])
            used = 0
        buckets[-1].append((name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)))
        used += tensor.nbytes
    return buckets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=MODEL["num_hidden_layers"])
    parser.add_argument("--largest-mib", type=int, default=max(SIZES_MIB))
    parser.add_argument("--no-engine", action="store_true", help="only what needs no vLLM")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE}, and the plot into {PLOT}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the engines are ended on the way out
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # for vLLM's worker
    with (
        tempfile.TemporaryDirectory(prefix="handoff-") as directory,
        tempfile.TemporaryDirectory(prefix="handoff-", dir="/dev/shm") as tmpfs,
    ):
        model = write_model(Path(tmpfs), DType.BFLOAT16, **MODEL | {"num_hidden_layers": options.layers})
        trainer = Trainer(model, Path(tmpfs))
        trainer.write(0)
        said = conditions(trainer.nbytes, len(trainer.versions[0]), options.rounds)
        print(said, flush=True)
        rows = show([copies(trainer.versions[0], options.rounds), *own_work(trainer.versions[0], options.rounds)])
        if not options.no_engine:
            rows += side_by_side(trainer, Path(directory), options.rounds)
    del trainer
    points = scaling(tuple(size for size in SIZES_MIB if size <= options.largest_mib), options.rounds)
    made = table(rows, said, points)
    print(made)
    if options.write:
        PLOT.write_text(draw(points))
        PAGE.write_text(written(PAGE.read_text(), made))


if __name__ == "__main__":
    main()
