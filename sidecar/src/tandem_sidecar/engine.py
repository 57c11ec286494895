# SPDX-License-Identifier: Apache-2.0
"""The vLLM process: its command line, its start, its end."""

import asyncio
import hashlib
import os
import signal
import sys
from pathlib import Path

import structlog

from tandem_api.environment import ENGINE_MEMORY, Job
from tandem_api.errors import MemberFailed, TryAgain
from tandem_sidecar.engine_client import MODEL_NAME, EngineClient
from tandem_sidecar.metrics import MemberMetrics
from tandem_sidecar.processes import end_group, signal_group

log = structlog.get_logger()

_POLL = 0.25
_STOP_SECONDS = 20.0
_WATCH_SECONDS = 10.0
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the kernel has it

ON_CPU = ("--enforce-eager", "--no-enable-chunked-prefill")
"""vLLM's arguments without accelerators. In chunks, a prompt of a request with a seed ends vLLM: it turns the request's
generator back, which a CPU's cannot do ("CPU Generator does not use offset").
"""


def arguments(job: Job, model: Path, socket: Path) -> list[str]:
    """vLLM's command line for this job. The server listens on a Unix socket only: its dev routes ask for no key."""
    spec = job.spec
    return [
        *("--model", str(model), "--served-model-name", MODEL_NAME, "--load-format", "dummy"),
        *("--dtype", spec.model.dtype.value, "--seed", str(spec.seed), "--uds", str(socket)),
        *("--tensor-parallel-size", str(spec.engine.tensor_parallel)),
        *("--max-model-len", str(spec.engine.max_model_len), "--max-num-seqs", str(spec.engine.max_concurrent)),
        *("--logprobs-mode", "processed_logprobs", "--enable-scale-out", "--disable-uvicorn-access-log"),
        *("--weight-transfer-config", '{"backend": "tandem"}'),
        *("--worker-extension-cls", "tandem_sidecar.engine_plugin.report.HandoffReporter"),
        *(("--enable-sleep-mode",) if spec.hybrid.accelerators else ON_CPU),
        *spec.engine.extra_args,
    ]


def variables(job: Job) -> dict[str, str]:
    """vLLM's environment beyond the container's."""
    cpu = (
        {}
        if job.spec.hybrid.accelerators
        else {
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, job.spec.engine.kv_cache // 2**30)),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "TORCHDYNAMO_DISABLE": "1",
        }
    )
    return {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_PLUGINS": "tandem", **cpu}


class Engine:
    """Supervises one vLLM server.

    Life cycle: :meth:`start` -> ready to be asked -> :meth:`stop`; it can be started again. ``gone`` is set when it has
    ended, whoever ended it, and with it all processes that it started: then they hold nothing of the device.
    """

    def __init__(self, job: Job, model: Path, run_dir: Path, metrics: MemberMetrics) -> None:
        self._job = job
        self._metrics = metrics
        self._model = model
        self.socket = run_dir / "engine.sock"
        self._memory = f"t{hashlib.sha256(bytes(run_dir)).hexdigest()[:7]}_"
        self.client = EngineClient(self.socket)
        self.gone = asyncio.Event()
        self.gone.set()
        self.restarts = -1
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return not self.gone.is_set()

    async def start(self, timeout: float) -> None:
        """Start vLLM and wait until it answers; cancelled, it ends what it started.

        Raises:
            MemberFailed: it ended, or did not answer in ``timeout`` seconds.
        """
        self.socket.unlink(missing_ok=True)
        self._free_memory()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *arguments(self._job, self._model, self.socket),
            env={**os.environ, **variables(self._job), ENGINE_MEMORY: self._memory},
            start_new_session=True,
        )
        self.gone.clear()
        self.restarts += 1
        self._metrics.engine_started(again=self.restarts > 0)
        self._watching = asyncio.create_task(self._watch(self._process), name="watch over vLLM")
        log.info("vLLM is starting", process=self._process.pid)
        try:
            async with asyncio.timeout(timeout):
                while not await self.client.healthy():
                    if self.gone.is_set():
                        raise MemberFailed(f"vLLM ended with status {self._process.returncode} while it started")
                    await _first_of(self.gone.wait(), asyncio.sleep(_POLL))
        except TimeoutError:
            await self.stop()
            raise MemberFailed(f"vLLM did not answer within {timeout:.0f} s of its start") from None
        except asyncio.CancelledError:
            # Nobody waits for it any more, and it would go on to take the device.
            await self.stop()
            raise

    async def failure(self) -> str:
        """Wait until vLLM has ended, or its core answers no more; returns what is wrong."""
        while True:
            await _first_of(self.gone.wait(), asyncio.sleep(_WATCH_SECONDS))
            if self.gone.is_set():
                return "vLLM has ended"
            try:
                await self.client.handoff_reports()
            except (TryAgain, MemberFailed) as error:
                return f"vLLM's core does not answer: {error}"

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        status = await process.wait()
        if not await end_group(process.pid, _STOP_SECONDS):
            log.warning("vLLM's server has ended, but not all that it started", process=process.pid)
        self._free_memory()
        self.gone.set()
        self._metrics.engine_gone()
        log.info("vLLM has ended", process=process.pid, status=status)

    def _free_memory(self) -> None:
        """What killed processes shared with each other stays until somebody frees it, for as long as the pod lives."""
        for segment in _SHARED_MEMORY.glob(f"{self._memory}*"):
            segment.unlink(missing_ok=True)

    async def stop(self) -> None:
        """End vLLM and all its processes; returns when they are gone."""
        process, self._process = self._process, None
        if process is None or self.gone.is_set():
            return
        signal_group(process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await self.gone.wait()
        except TimeoutError:
            log.warning("vLLM ignores SIGTERM and is killed", process=process.pid)
            signal_group(process.pid, signal.SIGKILL)
            await self.gone.wait()

    async def close(self) -> None:
        await self.stop()
        await self.client.__aexit__(None, None, None)


async def _first_of(*awaitables: object) -> None:
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]  # type: ignore[call-overload]
    _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
