# SPDX-License-Identifier: Apache-2.0
"""Faults for a run of `tandem run`: processes of its pods are killed or stopped, leases revoked, at a named phase."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import aetcd
from running import processes_of

from tandem_api.keys import JobKeys
from tandem_api.messages.phases import PhaseName, PhaseRecord
from tandem_phases.mirror import Mirror
from tandem_phases.phase import current
from tandem_phases.store import Entry


class Kind(StrEnum):
    """What is done to a run."""

    TRAINER_KILLED = "trainer rank killed"
    ENGINE_KILLED = "engine killed"
    SIDECAR_KILLED = "sidecar killed"
    POD_LOST = "both containers of a pod killed"
    ORCHESTRATOR_KILLED = "orchestrator killed"
    ETCD_KILLED = "etcd killed"
    LEASE_LOST = "member's lease lost"
    LEADERSHIP_LOST = "leader's lease lost"
    SIDECAR_STOPPED = "sidecar stopped for longer than its lease"
    TRAINER_STOPPED = "trainer rank stopped beyond the deadline"
    ENGINE_STOPPED = "engine stopped beyond the deadline"


@dataclass(frozen=True, slots=True)
class Fault:
    """``kind`` happens to pod ``index``, ``after`` seconds into the next ``phase`` that begins.

    ``seconds``: how long a stopped process stays stopped. A Recover is brought about by revoking the pod's lease.
    """

    kind: Kind
    phase: PhaseName
    index: int = 0
    after: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind} in {self.phase}"


@dataclass(frozen=True, slots=True)
class Recovery:
    """What came of a fault. ``hit``: the phase that was current right after it; ``reason``: why the job recovered.

    ``seconds`` from ``at`` (Unix seconds) until the job works again: past Recover in a new world, in the next Rollout
    if it needed no new one, under a new leader, or in the next phase where only etcd was away.
    """

    fault: Fault
    hit: PhaseName
    at: float
    seconds: float
    new_world: bool
    reason: str | None


class Breaker:
    """Does faults to one run, one after the other.

    >>> breaker = Breaker(out, endpoint, mirror, keys)                                           # doctest: +SKIP
    >>> recovery = await breaker.inflict(Fault(Kind.TRAINER_KILLED, PhaseName.TRAIN), patience=120)
    """

    def __init__(self, out: Path, endpoint: str, mirror: Mirror, keys: JobKeys) -> None:
        self._out = out
        self._endpoint = endpoint
        self._mirror = mirror
        self._keys = keys
        self._reasons: dict[int, str | None] = {}
        self._rollout_began: float | None = None
        self._known: list[int] = []

    async def inflict(self, fault: Fault, patience: float, before: Callable[[], None] = lambda: None) -> Recovery:
        """Wait for the fault's phase to begin, do it, and wait until the job has recovered.

        ``before`` is called right before. Each wait takes ``patience`` seconds at most.

        Raises:
            TimeoutError: the phase did not begin, or the job did not recover.
        """
        if fault.phase is PhaseName.RECOVER:
            await self._revoke(self._keys.member(fault.index))
        self._known = processes_of(self._out)
        record = await self._next(fault.phase, patience)
        await asyncio.sleep(fault.after)
        before()
        self._rollout_began = None
        leader = self._mirror.entries.get(self._keys.leader)
        at = time.time()
        await self._do(fault)
        hit = await self._phase()
        ended = await asyncio.wait_for(self._recovered(fault, record, leader), patience)
        now = await self._phase()
        new = now.world > record.world
        reason = self._reasons.get(now.world) if new else None
        return Recovery(fault, hit.name, at, ended - at, new, reason)

    async def _next(self, name: PhaseName, patience: float) -> PhaseRecord:
        """The record of the next phase of this name that begins from now on."""
        seen = current(self._mirror.entries, self._keys)
        epoch = seen.record.epoch if seen else 0

        def begun(entries: Mapping[str, Entry]) -> PhaseRecord | None:
            found = current(entries, self._keys)
            assert found is None or not found.record.name.final, f"the run is {found.record.name} before {name} came"
            return found.record if found and found.record.epoch > epoch and found.record.name is name else None

        return await self._mirror.until(begun, patience)

    async def _phase(self) -> PhaseRecord:
        found = await self._mirror.until(lambda entries: current(entries, self._keys))
        return found.record

    async def _recovered(self, fault: Fault, before: PhaseRecord, leader: Entry | None) -> float:
        """When the job worked again, in Unix seconds."""
        if fault.kind is Kind.ETCD_KILLED:
            return await self._mirror.until(lambda entries: self._moved(entries, before))
        if fault.kind in (Kind.ORCHESTRATOR_KILLED, Kind.LEADERSHIP_LOST):
            assert leader is not None
            return await self._mirror.until(lambda entries: self._led_anew(entries, leader))
        without = fault.kind in (Kind.ENGINE_KILLED, Kind.ENGINE_STOPPED)
        return await self._mirror.until(lambda entries: self._works(entries, before, without))

    def _moved(self, entries: Mapping[str, Entry], before: PhaseRecord) -> float | None:
        found = current(entries, self._keys)
        return found.record.started if found is not None and found.record.epoch > before.epoch else None

    def _led_anew(self, entries: Mapping[str, Entry], before: Entry) -> float | None:
        found = entries.get(self._keys.leader)
        return time.time() if found is not None and found.created != before.created else None

    def _works(self, entries: Mapping[str, Entry], before: PhaseRecord, without_new_world: bool) -> float | None:
        found = current(entries, self._keys)
        if found is None or found.record.epoch <= before.epoch:
            return None
        record = found.record
        if record.name in (PhaseName.RECOVER, PhaseName.FAILED):
            self._reasons[record.world] = record.reason
        assert record.name is not PhaseName.FAILED, record.reason
        if record.world > before.world:
            return None if record.name is PhaseName.RECOVER else record.started
        if record.name is PhaseName.ROLLOUT:
            self._rollout_began = record.started
        # Only a Rollout that was seen to its end shows that the engine that was lost is there again.
        ended = record.name in (PhaseName.RELEASE, PhaseName.SUCCEEDED)
        return self._rollout_began if without_new_world and ended else None

    def over(self, entries: Mapping[str, Entry]) -> bool:
        """Whether the run has come to its end."""
        found = current(entries, self._keys)
        return found is not None and found.record.name.final

    # What is done

    async def _do(self, fault: Fault) -> None:
        pod = f"-hybrid-{fault.index}"
        match fault.kind:
            case Kind.TRAINER_KILLED:
                self._signal(signal.SIGKILL, pod, "-m tandem_trainer", "LOCAL_RANK=")
            case Kind.ENGINE_KILLED:
                self._signal(signal.SIGKILL, pod, "vllm.entrypoints")
            case Kind.SIDECAR_KILLED:
                self._signal(signal.SIGKILL, pod, "-m tandem_sidecar")
            case Kind.POD_LOST:
                self._signal(signal.SIGKILL, pod, "torch.distributed.run")
                self._signal(signal.SIGKILL, pod, "-m tandem_sidecar")
            case Kind.ORCHESTRATOR_KILLED:
                self._signal(signal.SIGKILL, "-orchestrator", "-m tandem_orchestrator")
            case Kind.ETCD_KILLED:
                self._signal(signal.SIGKILL, "", "etcdbin/etcd")
            case Kind.LEASE_LOST:
                await self._revoke(self._keys.member(fault.index))
            case Kind.LEADERSHIP_LOST:
                await self._revoke(self._keys.leader)
            case Kind.SIDECAR_STOPPED:
                await self._stop(fault.seconds, pod, "-m tandem_sidecar")
            case Kind.TRAINER_STOPPED:
                await self._stop(fault.seconds, pod, "-m tandem_trainer", "LOCAL_RANK=")
            case Kind.ENGINE_STOPPED:
                self._signal(signal.SIGSTOP, pod, "vllm.entrypoints")

    async def _revoke(self, key: str) -> None:
        host, _, port = self._endpoint.partition(":")
        async with aetcd.Client(host=host, port=int(port)) as client:
            found = await client.get(key.encode())
            assert found is not None, f"{key} is not there"
            await client.revoke_lease(found.lease)

    async def _stop(self, seconds: float, pod: str, *marks: str) -> None:
        stopped = self._signal(signal.SIGSTOP, pod, *marks)
        await asyncio.sleep(seconds)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)

    def _signal(self, number: signal.Signals, pod: str, command: str, environment: str = "") -> list[int]:
        """Signal the run's processes of a pod with this on the command line (not their supervisors)."""
        # The phase may last milliseconds: looking through all processes takes longer.
        found = [pid for pid in self._known if _is(pid, pod, command, environment)]
        found = found or [pid for pid in processes_of(self._out) if _is(pid, pod, command, environment)]
        assert found, f"the run has no process {command!r} in {pod!r}"
        for pid in found:
            os.kill(pid, number)
        return found


def _is(pid: int, pod: str, command: str, environment: str) -> bool:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        variables = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    if command not in line or "supervisor.py" in line:
        return False
    named = next((value for value in variables if value.startswith("TANDEM_POD_NAME=")), "")
    return named.endswith(pod) and any(value.startswith(environment) for value in variables)


def endpoint_of(out: Path) -> str | None:
    """Where the run's own etcd listens, once it does."""
    for pid in processes_of(out):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        for word in line:
            if word.startswith(b"--listen-client-urls=http://") and b"supervisor.py" not in b" ".join(line):
                return word.decode().partition("//")[2]
    return None
