# SPDX-License-Identifier: Apache-2.0
"""A real vLLM with a tiny model, shared by all tests of a session, and the same model in plain transformers.

Starting vLLM takes one to three minutes on two cores, nearly all of it imports, so it is started once, before the first
test runs, and tests hand it the weights they need.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tandem_api.model_source import materialise
from tandem_api.spec.model import CharacterTokenizer, DType, RandomSource
from tandem_handoff import Exporter, Manifest, Verify
from tandem_sidecar.engine import ON_CPU

CHARACTERS = "0123456789+-= \n"
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.2,
}
START_SECONDS = 900.0
PROBE = [5, 3, 12, 7, 14, 2, 9, 11, 4]


def write_model(directory: Path, dtype: DType = DType.FLOAT32, **changes: Any) -> Path:
    """Writes config and tokenizer of a Qwen3 of 0.1 M parameters with tied embeddings and a vocabulary to pad."""
    source = RandomSource(config=CONFIG | changes, tokenizer=CharacterTokenizer(characters=CHARACTERS))
    return materialise(source, directory, dtype)


def reference_model(directory: Path, seed: int) -> torch.nn.Module:
    """The model in transformers, float32 on the CPU, with weights of this seed."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory), dtype=torch.float32)
    return model.eval()


def weights(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Names and tensors as a trainer exports them: a tied head is not repeated."""
    return list(model.named_parameters())


@torch.no_grad()
def reference_logprobs(model: torch.nn.Module, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """float32 [len(completion)]: each token's log-prob given those before it."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(completion).unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Completion:
    """What the engine generated: tokens, their log-probs, the weight version of each, and why it stopped."""

    tokens: list[int]
    logprobs: torch.Tensor
    versions: list[str]
    finish_reason: str


class Engine:
    """A vLLM process on a Unix socket, and the routes that tests need. docs/engine-routes.md describes them.

    The last of vLLM's arguments wins, so `arguments` change what every engine gets.
    """

    def __init__(self, model: Path, directory: Path, dtype: str = "float32", arguments: Iterable[str] = ()) -> None:
        self.model = model
        self.directory = directory
        self.socket = directory / "engine.sock"
        self.log = directory / "engine.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*_arguments(model, self.socket, dtype), *arguments],
                env=os.environ | _ENVIRONMENT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # After an answer of 500 the server closes the connection, so none is used twice.
        transport = httpx.HTTPTransport(uds=str(self.socket), limits=httpx.Limits(max_keepalive_connections=0))
        self._http = httpx.Client(transport=transport, base_url="http://engine", timeout=300)

    def wait(self) -> None:
        """Returns when the engine answers; fails with the end of its log."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"vLLM did not start; the end of its log:\n{self.log_tail()}")
            with contextlib.suppress(httpx.TransportError):
                if self._http.get("/health").status_code == 200:
                    break
            threading.Event().wait(0.2)
        self.call("/init_weight_transfer_engine", {"init_info": {"directory": str(self.directory)}}).raise_for_status()

    def call(self, route: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """POST, whatever the answer's status."""
        return self._http.post(route, json=body)

    def get(self, route: str) -> httpx.Response:
        """GET, which must succeed."""
        return self._http.get(route).raise_for_status()

    def report(self) -> dict[str, Any]:
        """The worker's handoff report."""
        answer = self.call("/collective_rpc", {"method": "handoff_report"})
        answer.raise_for_status()
        report: dict[str, Any] = answer.json()["results"][0]
        return report

    def update(self, version: int, timeout: float = 240.0) -> httpx.Response:
        """Pause, start and update; the answer to the update."""
        self.call("/pause").raise_for_status()
        self.call("/start_weight_update").raise_for_status()
        return self.call("/update_weights", {"update_info": {"version": version, "timeout": timeout}})

    def finish(self, version: int) -> None:
        """Finish and resume."""
        self.call("/finish_weight_update", {"weight_version": str(version)}).raise_for_status()
        self.call("/resume").raise_for_status()

    def hand_over(
        self,
        version: int,
        tensors: Iterable[tuple[str, torch.Tensor]],
        bucket_bytes: int = 2**16,
        verify: Verify = Verify.CHECKSUMS,
    ) -> Manifest:
        """A complete handoff of these tensors from this process."""
        with self.exporter(bucket_bytes, verify) as exporter, ThreadPoolExecutor(1) as pool:
            exported = pool.submit(exporter.export, version, tensors, 240.0)
            answer = self.update(version)
            assert answer.status_code == 200, answer.text
            manifest = exported.result(240.0)
        self.finish(version)
        return manifest

    def exporter(self, bucket_bytes: int = 2**16, verify: Verify = Verify.CHECKSUMS) -> Exporter:
        """An exporter where this engine looks for one."""
        return Exporter(self.directory / "handoff-0.sock", bucket_bytes, verify=verify)

    def generate(self, prompt: list[int], max_tokens: int, **sampling: Any) -> Completion:
        """A completion, greedy unless told otherwise."""
        answer = self.call("/inference/v1/generate", generate_body(prompt, max_tokens, **sampling))
        answer.raise_for_status()
        return completion(answer.json())

    def log_tail(self, size: int = 6000) -> str:
        """The end of vLLM's output."""
        return self.log.read_text(errors="replace")[-size:]

    def close(self) -> None:
        """Ends the process and its children."""
        self._http.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)


def generate_body(prompt: list[int], max_tokens: int, **sampling: Any) -> dict[str, Any]:
    """The body of a request to /inference/v1/generate."""
    defaults = {"max_tokens": max_tokens, "temperature": 0.0, "logprobs": 0, "ignore_eos": True, "detokenize": False}
    return {"token_ids": prompt, "sampling_params": defaults | sampling}


def completion(answer: dict[str, Any]) -> Completion:
    """Reads an answer of /inference/v1/generate."""
    (choice,) = answer["choices"]
    tokens = choice["token_ids"] or []
    versions = [""] * len(tokens)
    for span in choice["weight_versions"] or []:
        versions[span["start"] : span["end"]] = [span["version"]] * (span["end"] - span["start"])
    entries = (choice["logprobs"] or {}).get("content") or []
    return Completion(tokens, torch.tensor([entry["logprob"] for entry in entries]), versions, choice["finish_reason"])


def generated_tokens(engine: Engine) -> float:
    """Tokens that the engine has generated since its start."""
    lines = engine.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:generation_tokens_total"))


@contextlib.contextmanager
def running_engine(dtype: str = "float32", **changes: Any) -> Iterator[Engine]:
    """Starts an engine; it may not answer yet: call `wait`."""
    with tempfile.TemporaryDirectory(prefix="engine-", ignore_cleanup_errors=True) as directory:
        engine = Engine(write_model(Path(directory) / "model", DType(dtype), **changes), Path(directory), dtype)
        try:
            yield engine
        finally:
            engine.close()


_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_PLUGINS": "tandem",
}


def _arguments(model: Path, socket: Path, dtype: str) -> list[str]:
    module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    weights_from = ["--weight-transfer-config", '{"backend": "tandem"}', "--load-format", "dummy"]
    reporter = ["--worker-extension-cls", "tandem_sidecar.engine_plugin.report.HandoffReporter"]
    serving = [
        "--uds",
        str(socket),
        "--served-model-name",
        "policy",
        "--enable-scale-out",
        "--disable-uvicorn-access-log",
    ]
    sizes = ["--dtype", dtype, "--max-model-len", "512", "--max-num-seqs", "8"]
    return [*module, "--model", str(model), *weights_from, *reporter, *serving, *sizes, *ON_CPU]
