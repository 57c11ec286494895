# SPDX-License-Identifier: Apache-2.0
"""Faults for a run of ``tandem run`` on this machine."""

import asyncio
import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tandem_api import manifest
from tandem_api.errors import Problem, UserError
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import PhaseName
from tandem_api.rljob import RLJobObject
from tandem_api.spec.lifecycle import Verify
from tandem_api.status import JobPhase
from tandem_cli.chaos import confinement, deeds
from tandem_cli.chaos.deed_channel import ArmedDeed, order_of
from tandem_cli.chaos.place import ArmedFault, AtOnce, JobEnded, NotDone, Seen, problems
from tandem_cli.chaos.plan import Component, Fault, Kind
from tandem_cli.chaos.targets import Refused
from tandem_cli.local.supervisor import descendants
from tandem_cli.run.directory import RunDirectory
from tandem_phases.mirror import Mirror
from tandem_phases.phase import current
from tandem_phases.store import Entry, Store

_LOOK_SECONDS = 0.5
_START_SECONDS = 30.0


class LocalRun:
    """A run that goes on in a directory, whoever started it.

    >>> async with attached(Path("runs/demo")) as run:                                           # doctest: +SKIP
    ...     await Injector(run, patience=600).inflict(fault)
    """

    def __init__(self, directory: RunDirectory, job: RLJobObject, holder: int, store: Store, mirror: Mirror) -> None:
        self._directory = directory
        self._job = job
        self._holder = holder
        self._store = store
        self._mirror = mirror
        self._keys = keys_of(job)

    @property
    def seen(self) -> Seen | None:
        return self._seen(self._mirror.entries)

    async def until[T](self, condition: Callable[[Seen], T | None], timeout: float | None = None) -> T:
        """As :class:`tandem_cli.chaos.place.Job` has it. Etcd goes with the run, so its end is seen by its lock."""

        def look(entries: Mapping[str, Entry]) -> T | None:
            seen = self._seen(entries)
            return condition(seen) if seen is not None else None

        async with asyncio.timeout(timeout):
            while holder_of(self._directory) is not None:
                with contextlib.suppress(TimeoutError):
                    return await self._mirror.until(look, _LOOK_SECONDS)
            return self._at_the_end(condition)

    async def refusals(self, faults: Sequence[Fault]) -> list[Problem]:
        return problems(faults, self._refusals)

    @asynccontextmanager
    async def armed(self, fault: Fault) -> AsyncIterator[ArmedFault]:
        if fault.kind is Kind.LOSE_LEASE:
            yield AtOnce(lambda: self._lose_lease(fault))
            return
        index = fault.index if fault.component.in_pod else None
        order = order_of(fault, ancestor=self._holder, index=index, directory=str(self._directory.path))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", confinement.__name__, json.dumps(order)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C is heard here, and what was done is put right in order.
            start_new_session=True,
        )
        deed = ArmedDeed(ProcessChannel(process))
        try:
            await deed.armed()
            yield deed
        finally:
            await deed.end()

    async def _lose_lease(self, fault: Fault) -> None:
        """Take the lease of a member, or of the leader, away."""
        leader = fault.component is Component.ORCHESTRATOR
        key = self._keys.leader if leader else self._keys.member(fault.index)
        entry = self._mirror.entries.get(key)
        if entry is None or not entry.lease:
            raise NotDone("nobody leads" if leader else f"pod {fault.index} is no member")
        await self._store.revoke(entry.lease)

    def _seen(self, entries: Mapping[str, Entry]) -> Seen | None:
        phase, leader = current(entries, self._keys), entries.get(self._keys.leader)
        return Seen(phase.record, leader.created if leader else None) if phase else None

    def _at_the_end[T](self, condition: Callable[[Seen], T | None]) -> T:
        status, seen = self._directory.read_status(), self.seen
        if seen is not None and status.phase in (JobPhase.SUCCEEDED, JobPhase.FAILED):
            last = seen.record.model_copy(update={"name": PhaseName(status.phase.value)})
            if (value := condition(Seen(last, seen.leader))) is not None:
                return value
        raise JobEnded(f"the run in {self._directory.path} is over: {status.phase}")

    def _refusals(self, fault: Fault) -> Iterator[str]:
        spec = self._job.spec
        if fault.component.in_pod and fault.index >= spec.hybrid.replicas:
            yield f"the run has {spec.hybrid.replicas} hybrid pods, and their indices begin at 0"
        if fault.phase is PhaseName.WARMUP and spec.data.warmup is None:
            yield "in Warmup: the run has none"
        if fault.kind is Kind.CORRUPT_SEGMENT and spec.handoff.verify is not Verify.CHECKSUMS:
            yield "nothing would notice it: spec.handoff.verify is Names; run the job with Checksums"
        if fault.kind is Kind.CORRUPT_SEGMENT and spec.hybrid.accelerators:
            yield "its weights go from trainer to engine in the accelerators' memory, which nobody else can write to"
        checks: dict[Kind, Callable[[], object]] = {
            Kind.PARTITION: confinement.check_partition,
            Kind.OUT_OF_MEMORY: confinement.memory_groups,
            Kind.FILL_DISK: lambda: deeds.check_own_file_system(self._directory.path),
        }
        try:
            checks.get(fault.kind, lambda: None)()
        except Refused as error:
            yield str(error)


class ProcessChannel:
    """A process of this machine."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._input = process.stdin
        self._output = process.stdout

    async def line(self) -> bytes:
        return await self._output.readline()

    def write(self, line: bytes) -> None:
        self._input.write(line)

    async def close(self) -> None:
        self._input.close()
        # Whoever cancels us waits for this as well.
        await asyncio.shield(self._process.wait())


@asynccontextmanager
async def attached(out: Path) -> AsyncIterator[LocalRun]:
    """The run that goes on in a directory, once its etcd does.

    Raises:
        UserError: there is none, or it has no etcd for long.
    """
    directory = RunDirectory(out)
    holder = holder_of(directory)
    if holder is None:
        raise UserError(Problem(str(out), f"no run goes on there; start one: tandem run FILE --out {out}"))
    endpoint = await _endpoint_of(directory, holder)
    job = manifest.load(directory.job)
    async with Store((endpoint,)) as store, Mirror(store, keys_of(job).prefix) as mirror:
        yield LocalRun(directory, job, holder, store, mirror)


def keys_of(job: RLJobObject) -> JobKeys:
    return JobKeys(job.metadata.namespace, job.metadata.name, job.metadata.uid)


def holder_of(directory: RunDirectory) -> int | None:
    """The process that runs the job of a directory: the one that holds its lock, of which all others descend."""
    if not directory.holds_run:
        return None
    try:
        descriptor = os.open(directory.path / ".lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0)
        return int(text) if text else None
    finally:
        os.close(descriptor)


async def _endpoint_of(directory: RunDirectory, holder: int) -> str:
    """Where the run's own etcd listens, host:port."""
    until = time.monotonic() + _START_SECONDS
    while (found := _etcd_below(holder, directory)) is None:
        if time.monotonic() > until:
            raise UserError(Problem(str(directory.path), f"its run has no etcd after {_START_SECONDS:.0f} s"))
        await asyncio.sleep(_LOOK_SECONDS)
    return found


def _etcd_below(holder: int, directory: RunDirectory) -> str | None:
    for pid in descendants(holder):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if words[0].endswith("/etcd") and f"--data-dir={directory.etcd}" in words:
                listening = (word for word in words if word.startswith("--listen-client-urls="))
                return next(listening).partition("//")[2]
    return None
