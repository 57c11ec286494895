# SPDX-License-Identifier: Apache-2.0
"""A real trainer world: ranks under torchrun, an orchestrator that only serves batches, and the sidecar's commands."""

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from tandem_api.messages.trainer import Export, TrainerCommand, TrainerReply
from tandem_api.tls import server_context
from tandem_cli.local.supervisor import descendants
from tandem_handoff import Importer

TOKEN = "a-token"
CHARACTERS = "0123456789+-= \n"
START_SECONDS = 240.0
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.1,
}


def job_spec(**trainer: Any) -> dict[str, Any]:
    """A float32 job of three iterations whose optimizer keeps its moments, so that they matter."""
    return {
        "iterations": 4,
        "seed": 7,
        "model": {
            "source": {"random": {"config": CONFIG, "tokenizer": {"characters": CHARACTERS}}},
            "dtype": "float32",
        },
        "data": {
            "prompts": [{"path": "/data/prompts.jsonl"}],
            "warmup": {"path": "/data/warmup.jsonl", "epochs": 2, "batchSize": 10, "learningRate": 1e-3},
        },
        "trainer": {
            "optimizer": {"learningRate": 1e-3, "resetEachIteration": False, "decay": "Linear"},
            "microBatchTokens": 300,
            **trainer,
        },
        "rollout": {"promptsPerIteration": 8, "samplesPerPrompt": 4, "maxTokens": 30},
        "engine": {"maxModelLen": 64},
        "algorithm": {"mirrorDescent": {"tau": 0.1, "batchPrompts": 3, "epochs": 2}},
        "rewards": [{"name": "exact", "exact": {}}],
    }


def batch(seed: int, version: int, prompts: int = 8, samples: int = 4) -> dict[str, torch.Tensor]:
    """Random samples of 6 to 36 tokens in the wire's format."""
    generator = torch.Generator().manual_seed(seed)
    count = prompts * samples
    prompt_lengths = torch.randint(3, 8, (prompts,), generator=generator).repeat_interleave(samples)
    lengths = prompt_lengths + torch.randint(3, 29, (count,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    position = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(lengths)
    written = position >= prompt_lengths.repeat_interleave(lengths)
    versions = torch.where(written, version, -1)
    return {
        "tokens": torch.randint(0, 17, (len(written),), generator=generator).int(),
        "offsets": offsets,
        "promptLengths": prompt_lengths.int(),
        "lossMask": written.to(torch.uint8),
        "engineLogprobs": torch.where(written, -2.5, 0.0),
        "versions": versions.int(),
        "rewards": torch.randint(0, 2, (count,), generator=generator).float(),
        "groups": torch.arange(prompts).repeat_interleave(samples).int(),
    }


def warmup_rows(seed: int) -> dict[str, torch.Tensor]:
    """25 rows, of which nothing but tokens and masks is known."""
    rows = batch(seed, 0, prompts=25, samples=1)
    return {name: rows[name] for name in ("tokens", "offsets", "promptLengths", "lossMask")}


@dataclass
class Orchestrator:
    """Serves bodies by path, to those with the job's token; over TLS if ``tls`` has its certificate and key."""

    bodies: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""
    tls: Path | None = None

    @contextlib.contextmanager
    def serving(self) -> Iterator["Orchestrator"]:
        orchestrator = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                orchestrator.requests.append(self.path)
                allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
                body = orchestrator.bodies.get(self.path) if allowed else None
                self.send_response(200 if body is not None else 404 if allowed else 401)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, format: str, *args: Any) -> None: ...

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        if context := server_context(self.tls):
            server.socket = context.wrap_socket(server.socket, server_side=True)
            self.url = f"https://localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def put_batch(self, iteration: int, tensors: dict[str, torch.Tensor]) -> None:
        metadata = {"iteration": str(iteration), "digest": ""}
        self.bodies[f"/v1/batches/{iteration}"] = safetensors.torch.save(tensors, metadata)

    def put_warmup(self, tensors: dict[str, torch.Tensor]) -> None:
        self.bodies["/v1/warmup"] = safetensors.torch.save(tensors)


class World:
    """Running trainer ranks. ``ask`` is what the sidecar does: the command to every rank, and rank 0's reply."""

    def __init__(self, run_dir: Path, ranks: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.run_dir = run_dir
        self._ranks = ranks
        self._process = process
        self._log = log

    def ask(self, command: TrainerCommand, timeout: float = START_SECONDS) -> TrainerReply:
        deadline = time.monotonic() + timeout
        with ThreadPoolExecutor(self._ranks) as threads:
            return next(threads.map(lambda rank: self._ask(rank, command, deadline), range(self._ranks)))

    def _ask(self, rank: int, command: TrainerCommand, deadline: float) -> TrainerReply:
        with self._connect(rank, deadline) as connection:
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            connection.sendall(command.wire().encode() + b"\n")
            line = connection.makefile("rb").readline()
            if not line:
                raise ConnectionError(f"rank {rank} went away during {command.command}:\n{self.log()}")
            return TrainerReply.model_validate_json(line)

    def _connect(self, rank: int, deadline: float) -> socket.socket:
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self.run_dir / f"trainer-{rank}.sock"))
                return connection
            except OSError:
                connection.close()
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise AssertionError(f"rank {rank} does not listen:\n{self.log()}") from None
                time.sleep(0.1)

    def meeting_port(self) -> int:
        """Where the ranks are to meet, once rank 0 listens for commands."""
        self._connect(0, time.monotonic() + START_SECONDS).close()
        for pid in descendants(self._process.pid):
            variables = dict(entry.partition("=")[::2] for entry in _environment(pid))
            if variables.get("RANK") == "0":
                return int(variables["MASTER_PORT"])
        raise AssertionError(f"there is no rank 0:\n{self.log()}")

    def export(
        self, epoch: int, version: int, probe: tuple[int, ...] = ()
    ) -> tuple[dict[str, torch.Tensor], TrainerReply]:
        """What an engine would get, and rank 0's reply."""
        received: dict[str, torch.Tensor] = {}

        def take() -> None:
            importer = Importer(self.run_dir / "handoff-0.sock")
            for tensors in importer.receive(version, START_SECONDS):
                received.update((name, tensor.clone()) for name, tensor in tensors)
            importer.close()

        with ThreadPoolExecutor(1) as thread:
            taking = thread.submit(take)
            reply = self.ask(Export(epoch=epoch, weight_version=version, timeout=START_SECONDS, probe=probe))
            taking.result()
        return received, reply

    def wait(self, timeout: float = START_SECONDS) -> int:
        return self._process.wait(timeout)

    def log(self) -> str:
        return self._log.read_text()[-6000:]


@contextlib.contextmanager
def running_world(
    spec: dict[str, Any],
    orchestrator: Orchestrator,
    checkpoints: Path,
    ranks: int = 1,
    program: tuple[str, ...] = ("-m", "tandem_trainer"),
) -> Iterator[World]:
    """Start ``ranks`` trainer ranks of a job; they are gone when the block ends."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "secrets").mkdir()
        (directory / "secrets" / "token").write_text(TOKEN)
        job = {"namespace": "test", "name": "job", "uid": "1", "spec": spec | {"hybrid": {"ranksPerPod": ranks}}}
        (directory / "job.json").write_text(json.dumps(job))
        environment = os.environ | {
            "TANDEM_JOB_FILE": str(directory / "job.json"),
            "TANDEM_SECRETS_DIR": str(directory / "secrets"),
            "TANDEM_RUN_DIR": name,
            "TANDEM_CHECKPOINT_DIR": str(checkpoints),
            "TANDEM_ORCHESTRATOR_URL": orchestrator.url,
            "TANDEM_LOG_FORMAT": "console",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # as tandem_trainer.launch has it
            "OMP_NUM_THREADS": "1",
        }
        log = directory / "log"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *program],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield World(directory, ranks, process, log)
        finally:
            _stop(process)


def _environment(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
