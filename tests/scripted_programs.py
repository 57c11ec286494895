# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the programs of a hybrid pod, run as ``python scripted_programs.py -m MODULE…`` where the real ones
are run as ``python -m MODULE…``: same command lines, environment, sockets and phases, without model or devices.

The sidecar's worker, its clients and the protocol are the real ones. What it hands over is a real segment of shared
memory, which is announced as an exporter does and which the sidecar checks as an engine does.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry

from tandem_api import environment as names
from tandem_api.environment import Environment
from tandem_api.errors import Fenced, MemberFailed, TryAgain
from tandem_api.keys import JobKeys
from tandem_api.logs import configure
from tandem_api.messages.phases import Member, PhaseRecord
from tandem_api.messages.trainer import (
    Export,
    FinishRun,
    Load,
    Offload,
    TrainerCommand,
    TrainerReply,
    TrainStep,
    trainer_command,
)
from tandem_api.messages.work import Finish, Lease, LeaseRequest, Segment, SegmentBatch, VersionSpan
from tandem_phases.store import Store
from tandem_sidecar.main import member_of, serve_health
from tandem_sidecar.metrics import MemberMetrics
from tandem_sidecar.steps import Part
from tandem_sidecar.trainer_client import TrainerClient
from tandem_sidecar.work_client import WorkClient
from tandem_sidecar.worker import Worker

PACE = 0.1
"""Seconds that a handoff takes; a step takes three times as long."""
DEADLINE = 60.0
SEGMENT_BYTES = 2**16
COMMANDS, HANDOFF = "trainer-0.sock", "handoff-0.sock"
_ECHO = "import sys\nfor line in sys.stdin:\n    sys.stdout.write(line)\n    sys.stdout.flush()"
_TOKENS = (2, 3, 4, 1)


class Engine:
    """A process that has to answer before anything counts as generated."""

    def __init__(self) -> None:
        self.process: asyncio.subprocess.Process | None = None

    async def ensure(self) -> None:
        if self.process is None or self.process.returncode is not None:
            command = ("-I", "-S", "-c", _ECHO, "vllm.entrypoints.openai.api_server")
            pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
            self.process = await asyncio.create_subprocess_exec(sys.executable, *command, **pipes)  # type: ignore[arg-type]

    async def generate(self) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(b"go\n")
            if await self.process.stdout.readline():
                return
        await self.process.wait()
        raise MemberFailed("the engine has ended")

    def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()


class Parts:
    """This member's part of each phase, as the worker calls them."""

    def __init__(self, member: Member, work: WorkClient, run_dir: Path) -> None:
        self._member = member
        self._work = work
        self._run_dir = run_dir
        self._trainer = TrainerClient(run_dir, 1)
        self.engine = Engine()

    async def start(self, record: PhaseRecord, part: Part) -> None:
        if record.world > 1:
            await self._trainer.let_go(Offload(epoch=record.epoch), DEADLINE)
        await self.engine.ensure()
        await self._trainer.load(Load(epoch=record.epoch, checkpoint=record.checkpoint), DEADLINE)

    async def warmup(self, record: PhaseRecord, part: Part) -> None:
        return

    async def rollout(self, record: PhaseRecord, _: Part) -> None:
        request = LeaseRequest(
            member=self._member.index, incarnation=self._member.incarnation, epoch=record.epoch, capacity=2, wait=0.2
        )
        while True:
            leases = (await _until_answered(partial(self._work.lease, request))).leases
            await asyncio.sleep(PACE / 3)
            await self.engine.generate()
            segments = tuple(_finished(lease, record.weight_version) for lease in leases)
            if segments:
                sender = {"member": request.member, "incarnation": request.incarnation}
                batch = SegmentBatch(**sender, epoch=record.epoch, segments=segments)
                await _until_answered(partial(self._work.store, batch))

    async def release(self, record: PhaseRecord, part: Part) -> None:
        part.measured["residualBytes"] = 0.0

    async def train(self, record: PhaseRecord, part: Part) -> None:
        step = TrainStep(
            epoch=record.epoch, iteration=record.iteration, weight_version=record.weight_version, save=record.save
        )
        part.checkpoint = (await self._trainer.ask(step, DEADLINE)).path
        part.measured["loss"] = 1.0

    async def handoff(self, record: PhaseRecord, part: Part) -> None:
        await self.engine.ensure()
        export = Export(epoch=record.epoch, weight_version=record.weight_version, timeout=DEADLINE)
        reply = await self._trainer.ask(export, DEADLINE)
        received = await asyncio.to_thread(received_digest, self._run_dir / HANDOFF)
        await asyncio.sleep(PACE)
        if received != reply.digest:
            raise MemberFailed("tensor model.norm.weight was refused: it changed on the way")
        part.digest = f"weights-{record.weight_version}"
        part.measured |= {"bytes": 8.0, "tensors": 1.0}

    async def suspended(self, record: PhaseRecord, part: Part) -> None:
        return

    async def succeeded(self, record: PhaseRecord, part: Part) -> None:
        self.engine.stop()
        await self._trainer.ask(FinishRun(epoch=record.epoch, export=False), DEADLINE)


async def _until_answered[T](call: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await call()
        except TryAgain:
            await asyncio.sleep(0.05)
        except Fenced:
            await asyncio.Event().wait()


def received_digest(path: Path) -> str:
    """Of the weights in the segment that the trainer announces."""
    with socket.socket(socket.AF_UNIX) as trainer:
        trainer.settimeout(DEADLINE)
        try:
            trainer.connect(str(path))
            _, (segment,), _, _ = socket.recv_fds(trainer, 4096, 1)
        except (OSError, ValueError) as error:
            raise MemberFailed("the trainer went away during the handoff") from error
    try:
        return hashlib.sha256(os.pread(segment, SEGMENT_BYTES, 0)).hexdigest()
    finally:
        os.close(segment)


def _finished(lease: Lease, version: int) -> Segment:
    tokens = _TOKENS[lease.offset :]
    spans = (VersionSpan(version=version, count=len(tokens)),)
    logprobs = tuple(-0.5 for _ in tokens)
    return Segment(
        trajectory=lease.trajectory,
        offset=lease.offset,
        tokens=tokens,
        logprobs=logprobs,
        versions=spans,
        finish=Finish.STOP,
    )


async def sidecar(env: Environment) -> None:
    job, secrets = env.job(), env.secrets()
    member = member_of(env)
    runner = await serve_health(member.address)
    async with (
        Store(env.etcd_endpoints(), timeout=2.0) as store,
        WorkClient(env.text(names.ORCHESTRATOR_URL), secrets.token) as work,
    ):
        parts = Parts(member, work, env.path(names.RUN_DIR))
        keys = JobKeys(job.namespace, job.name, job.uid)
        worker = Worker(store, keys, member, parts, MemberMetrics(CollectorRegistry()))  # type: ignore[arg-type]
        working = asyncio.create_task(worker.run())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, working.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await working
        parts.engine.stop()
    await runner.cleanup()


class Rank:
    """One trainer rank: answers its sidecar, and keeps a segment as an exporter of weights does."""

    def __init__(self) -> None:
        self._segment = os.memfd_create("tandem-weights")
        self.finished = asyncio.Event()

    async def serve(self, run_dir: Path) -> None:
        for name in (COMMANDS, HANDOFF):
            (run_dir / name).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as engines:
            engines.bind(str(run_dir / HANDOFF))
            engines.listen()
            engines.setblocking(False)
            handing_over = asyncio.create_task(self._hand_over(engines))
            server = await asyncio.start_unix_server(self._converse, str(run_dir / COMMANDS))
            await self.finished.wait()
            server.close()
            handing_over.cancel()

    async def _hand_over(self, engines: socket.socket) -> None:
        """Tell every engine that connects where its weights are."""
        tensor = {"name": "model.norm.weight", "offset": 0, "nbytes": SEGMENT_BYTES}
        body = json.dumps({"type": "bucket", "entries": [tensor]}).encode()
        while True:
            engine, _ = await asyncio.get_running_loop().sock_accept(engines)
            with engine, contextlib.suppress(OSError):
                socket.send_fds(engine, [len(body).to_bytes(4), body], [self._segment])

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = trainer_command.validate_json(await reader.readline())
        reply = await self._do(command)
        writer.write(reply.wire().encode() + b"\n")
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()
        if isinstance(command, FinishRun):
            self.finished.set()

    async def _do(self, command: TrainerCommand) -> TrainerReply:
        if isinstance(command, TrainStep):
            await asyncio.sleep(3 * PACE)
            return TrainerReply(path=f"iter-{command.iteration + 1}" if command.save else None)
        if isinstance(command, Export):
            content = os.urandom(SEGMENT_BYTES)
            os.pwrite(self._segment, content, 0)
            return TrainerReply(digest=hashlib.sha256(content).hexdigest())
        return TrainerReply()


def agent() -> None:
    """Starts its rank again until it has finished, as torchrun does."""
    # The supervisor asks a container to end; whatever it started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    while subprocess.call([sys.executable, __file__, "-m", "tandem_trainer"], env={**os.environ, "LOCAL_RANK": "0"}):
        pass


def main(module: str) -> None:
    env = Environment()
    configure(process=module, pod=env.text(names.POD_NAME))
    match module:
        case "tandem_sidecar":
            asyncio.run(sidecar(env))
        case "tandem_trainer.launch":
            os.execv(sys.executable, [sys.executable, __file__, "-m", "torch.distributed.run", "-m", "tandem_trainer"])
        case "torch.distributed.run":
            agent()
        case "tandem_trainer":
            asyncio.run(Rank().serve(env.path(names.RUN_DIR)))
        case _:
            raise SystemExit(f"no script for {module}")


if __name__ == "__main__":
    main(sys.argv[2])
