# SPDX-License-Identifier: Apache-2.0
"""Real orchestrator processes that can be killed at any point, and a member that works for them over real HTTP."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import random
import resource
import signal
import sqlite3
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from etcd_server import EtcdServer
from orchestrator_world import EOS, make_job, prompt_file, segment
from prometheus_client import CollectorRegistry
from safetensors.numpy import load

from tandem_api import environment as names
from tandem_api.errors import Fenced, TryAgain
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import Member, PhaseName, PhaseRecord, Progress
from tandem_api.messages.work import Finish, LeaseRequest, SegmentBatch
from tandem_phases.mirror import Mirror
from tandem_phases.store import Store
from tandem_sidecar.metrics import MemberMetrics
from tandem_sidecar.steps import Part
from tandem_sidecar.work_client import WorkClient
from tandem_sidecar.worker import Worker

TOKEN = "a-token-of-this-test"
LONGEST = 24
SOON = 240.0
ENDLESS = resource.RLIM_INFINITY
_AGAIN = 0.02
# Importing takes a second; each line on standard input asks for another orchestrator, forked from what is imported.
_STARTER = """
import os, sys
import tandem_orchestrator.main
for _ in sys.stdin:
    if (child := os.fork()) == 0:
        tandem_orchestrator.main.run()
        os._exit(0)
    print(child, flush=True)
    print("ended", os.waitpid(child, 0)[1], flush=True)
"""
_addresses = itertools.count(os.getpid() * 1000)


def response(trajectory: str) -> tuple[int, ...]:
    """What the member generates for a trajectory, always the same: its tokens differ from those of others."""
    drawn = random.Random(trajectory)
    return (*(drawn.randrange(2, 30) for _ in range(drawn.randrange(3, LONGEST))), EOS)


class Orchestrators:
    """The orchestrators of one job, one at a time. Use as an async context; :meth:`start` and :meth:`kill`.

    ``tls``: the directory with certificate and key of their API.
    """

    def __init__(self, directory: Path, etcd: EtcdServer, tls: Path | None = None, **parts: Any) -> None:
        self.job = make_job(prompt_file(directory), **parts)
        self.keys = JobKeys(self.job.namespace, self.job.name, self.job.uid)
        self.state = directory / "state"
        self.endpoints = etcd.endpoints
        number = next(_addresses)
        self.address = f"127.{64 + number // 62500 % 60}.{number // 250 % 250}.{number % 250 + 2}"
        self.url = f"http://{self.address}:{names.ORCHESTRATOR_PORT}"
        self.pid = 0
        self._tls = tls
        self._directory = directory

    async def __aenter__(self) -> "Orchestrators":
        job, secrets = self._directory / "job.json", self._directory / "secrets"
        job.write_text(self.job.dump())
        secrets.mkdir()
        (secrets / "token").write_text(TOKEN)
        self.state.mkdir()
        told = {
            names.JOB_FILE: str(job),
            names.SECRETS_DIR: str(secrets),
            names.ETCD_ENDPOINTS: ",".join(self.endpoints),
            names.STATE_DIR: str(self.state),
            names.POD_NAME: "orchestrator",
            names.POD_IP: self.address,
            **({names.TLS_DIR: str(self._tls)} if self._tls else {}),
        }
        with (self._directory / "log").open("wb") as log:
            self._starter = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _STARTER),
                env={**os.environ, **told},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.pid:
            await self.kill()
        assert self._starter.stdin is not None
        self._starter.stdin.close()
        await self._starter.wait()

    async def start(self) -> None:
        assert self._starter.stdin is not None
        self._starter.stdin.write(b"go\n")
        self.pid = int(await self._line())

    def room(self, size: int) -> None:
        """No file that the orchestrator writes, or one that is started, can be larger: as if the volume were full."""
        for pid in {self.pid or self._starter.pid, self._starter.pid}:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    async def kill(self) -> None:
        """End it by SIGKILL. Its leadership runs out at once, as if the time of the lease had passed."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        assert await self._line() == f"ended {signal.SIGKILL:d}", (self._directory / "log").read_text()[-3000:]
        self.pid = 0
        await asyncio.to_thread(self._end_leadership)

    async def terminate(self) -> int:
        """End it by SIGTERM; its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        ended = await self._line()
        self.pid = 0
        return os.waitstatus_to_exitcode(int(ended.removeprefix("ended ")))

    async def _line(self) -> str:
        assert self._starter.stdout is not None
        return (await self._starter.stdout.readline()).decode().strip()

    def _end_leadership(self) -> None:
        key = base64.b64encode(self.keys.leader.encode()).decode()
        for entry in self._etcd("kv/range", {"key": key}).get("kvs", []):
            self._etcd("lease/revoke", {"ID": entry["lease"]})

    def _etcd(self, route: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"http://{self.endpoints[0]}/v3/{route}", data=json.dumps(body).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)


class HttpMember:
    """The only member of a job: a real worker and a real client, with an engine that knows its responses by heart.

    ``acknowledged`` are the tokens of each trajectory that the orchestrator said are on its disk, ``batches`` the
    digest of each batch that was fetched, which must be the same every time. ``heard`` is called after each answer of
    the orchestrator's that brings something, and each new phase.
    """

    def __init__(self, job: Orchestrators, heard: Callable[[], None] = lambda: None, pace: float = 0.0) -> None:
        self._job = job
        self._heard = heard
        self._pace = pace
        self._cuts = random.Random(5)
        self.acknowledged: dict[str, int] = {}
        self.batches: dict[int, str] = {}
        self.refused: set[str] = set()

    async def __aenter__(self) -> "HttpMember":
        self._client = WorkClient(self._job.url, TOKEN)
        self._http = aiohttp.ClientSession(self._job.url, headers={"Authorization": f"Bearer {TOKEN}"})
        self._store = Store(self._job.endpoints)
        member = Member(index=0, pod="pod-0", uid="0", incarnation="0-1", address="127.0.0.1")
        metrics = MemberMetrics(CollectorRegistry())
        worker = Worker(self._store, self._job.keys, member, self, metrics)  # type: ignore[arg-type]
        self.task = asyncio.create_task(worker.run())
        self._mirror = await Mirror(self._store, self._job.keys.prefix).__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        await self._mirror.__aexit__(None, None, None)
        await self._store.__aexit__(None, None, None)
        await self._client.__aexit__(None, None, None)
        await self._http.close()

    async def until(self, seen: Callable[[PhaseRecord, Progress], bool], seconds: float = SOON) -> None:
        """Wait until phase and progress are so."""

        def reached(entries: Any) -> bool | None:
            phase, progress = entries.get(self._job.keys.phase), entries.get(self._job.keys.progress)
            if phase is None or progress is None:
                return None
            found = PhaseRecord.model_validate_json(phase.value), Progress.model_validate_json(progress.value)
            return seen(*found) or None

        await self._mirror.until(reached, seconds)

    def __getattr__(self, name: str) -> Callable[[PhaseRecord, Part], Awaitable[None]]:
        """``start``, ``train`` and so on, as the worker calls them."""
        parts = {PhaseName.ROLLOUT: self._rollout, PhaseName.TRAIN: self._train, PhaseName.HANDOFF: self._hand_over}

        async def part(record: PhaseRecord, part: Part) -> None:
            self._heard()
            if record.name in parts:
                await parts[record.name](record, part)

        return part

    async def _rollout(self, record: PhaseRecord, _: Part) -> None:
        while True:
            request = LeaseRequest(member=0, incarnation="0-1", epoch=record.epoch, capacity=4, wait=0.2)
            try:
                grant = await self._client.lease(request)
            except TryAgain as error:
                self.refused.add(str(error))
                await asyncio.sleep(_AGAIN)
                continue
            except Fenced:
                await asyncio.Event().wait()
            if grant.leases:
                self._heard()
            made = []
            for lease in grant.leases:
                rest = response(lease.trajectory)[lease.offset :]
                count = min(len(rest), lease.max_new_tokens, self._cuts.randrange(1, LONGEST))
                finish = Finish.STOP if count == len(rest) else Finish.ABORT
                made.append(segment(lease, rest[:count], finish, record.weight_version))
            if made:
                await asyncio.sleep(self._pace)
                await self._bring(SegmentBatch(member=0, incarnation="0-1", epoch=record.epoch, segments=tuple(made)))

    async def _bring(self, batch: SegmentBatch) -> None:
        """Until they are taken: the same segments may come again after a crash."""
        while True:
            try:
                receipt = await self._client.store(batch)
                break
            except TryAgain as error:
                self.refused.add(str(error))
                await asyncio.sleep(_AGAIN)
        for one in batch.segments:
            if one.trajectory in receipt.stored:
                known = self.acknowledged.get(one.trajectory, 0)
                self.acknowledged[one.trajectory] = max(known, one.offset + len(one.tokens))
        self._heard()

    async def _train(self, record: PhaseRecord, part: Part) -> None:
        while True:
            try:
                async with self._http.get(f"/v1/batches/{record.iteration}") as reply:
                    content = await reply.read()
                if reply.status == 200:
                    break
                self.refused.add(f"{reply.status} {content.decode()}")
            except aiohttp.ClientError as error:
                self.refused.add(str(error))
            await asyncio.sleep(_AGAIN)
        self._heard()
        digest = reply.headers["ETag"]
        assert self.batches.setdefault(record.iteration, digest) == digest, record.iteration
        tensors = load(content)
        assert (tensors["versions"][tensors["lossMask"] == 1] >= 0).all()
        part.measured["loss"] = 1.0
        part.checkpoint = f"iter-{record.iteration + 1}" if record.save else None

    async def _hand_over(self, record: PhaseRecord, part: Part) -> None:
        part.digest = f"weights-{record.weight_version}"
        part.measured |= {"bytes": 8.0, "tensors": 1.0}


def found_whole(state: Path, acknowledged: dict[str, int]) -> None:
    """Read the buffer of a job that nobody writes: sound, all that was acknowledged there once, nothing half.

    Every trajectory's tokens are the first of its response, its segments follow each other without gap or overlap, and
    no trajectory is in two batches.
    """
    db = sqlite3.connect(state / "buffer.sqlite")
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    stored: dict[str, bytes] = {}
    for name, offset, tokens, logprobs in db.execute(
        "SELECT trajectory, offset, tokens, logprobs FROM segments ORDER BY trajectory, offset"
    ):
        assert offset * 4 == len(stored.get(name, b"")), name
        assert len(tokens) == len(logprobs)
        stored[name] = stored.get(name, b"") + tokens
    for name, length, state_of in db.execute("SELECT id, length, state FROM trajectories"):
        wanted = b"".join(token.to_bytes(4, "little") for token in response(name)[:length])
        assert stored.get(name, b"") == wanted, (name, state_of)
        assert length >= acknowledged.get(name, 0), name
    assert acknowledged.keys() <= stored.keys()
    members = [name for (text,) in db.execute("SELECT members FROM batches") for name, _, _ in json.loads(text)]
    assert len(members) == len(set(members))
    db.close()
