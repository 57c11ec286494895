# SPDX-License-Identifier: Apache-2.0
"""A run of the real stack that meets faults, and what is left of it: recoveries, and books that must balance."""

import asyncio
import hashlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from running import ROOT, finish, manifest, start
from waiting import until

from tandem_cli.chaos import confinement
from tandem_cli.chaos.injector import Injector
from tandem_cli.chaos.local import attached, holder_of
from tandem_cli.chaos.plan import Fault, Kind
from tandem_cli.chaos.recovery import Recovery
from tandem_cli.chaos.targets import Refused
from tandem_cli.run.directory import RunDirectory

START_SECONDS = 400.0
RUN_SECONDS = 600.0
RECORD = Path(os.environ.get("TANDEM_RECOVERIES", ROOT / "build" / "recoveries.jsonl"))
"""Where tests leave how long recoveries took."""

SMALL: Mapping[str, Any] = {
    "spec.rollout.promptsPerIteration": 16,
    "spec.rollout.samplesPerPrompt": 8,
    "spec.data.warmup": None,
    "spec.data.evaluation": None,
    "spec.checkpoint.everyIterations": 2,
    "spec.runPolicy": {"maxRestarts": 50},
    # As many threads in every process that trains: sums in another order are other sums.
    "spec.trainer.env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
    "spec.schedule": {"phaseDeadlines": {"start": "6m", "release": "60s", "train": "60s", "handoff": "2m"}},
}


def can_confine() -> bool:
    """Whether processes can be cut off and put under limits here, which takes root."""
    try:
        confinement.check_partition()
        confinement.memory_groups()
    except Refused:
        return False
    return True


@dataclass
class Books:
    """What the replay buffer held at one time or another: a digest of each segment, and of each closed batch."""

    segments: dict[tuple[str, int], str] = field(default_factory=dict)
    batches: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, out: Path) -> "Books":
        books = cls()
        with closing(sqlite3.connect(out / "buffer.sqlite")) as db:
            for trajectory, offset, tokens in db.execute("SELECT trajectory, offset, tokens FROM segments"):
                books.segments[trajectory, offset] = hashlib.sha256(tokens).hexdigest()
            books.batches = dict(db.execute("SELECT iteration, digest FROM batches").fetchall())
        return books

    def lost(self, now: "Books") -> list[str]:
        """What was on disk once and is not any more, or is another."""
        segments = [f"segment {key}" for key, found in self.segments.items() if now.segments.get(key) != found]
        batches = [f"batch {key}" for key, found in self.batches.items() if now.batches.get(key) != found]
        return segments + batches


@dataclass
class BrokenRun:
    """A run that met ``faults``. ``lost``: what its buffer once held and no longer does at the end.

    ``place``: local, or cluster, where ``out`` has copies of the run's buffer and timeline.
    """

    file: Path
    out: Path
    iterations: int
    place: str = "local"
    recoveries: list[Recovery] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    status: int | None = None

    def trained(self) -> list[int]:
        """The iterations that the final weights have seen, in order; what a rollback undid is left out."""
        phases = {}
        for line in (self.out / "timeline.jsonl").read_text().splitlines():
            part = json.loads(line)
            if part["index"] is None:
                phases[part["epoch"]] = part
        ordered = [phases[epoch] for epoch in sorted(phases)]
        done: list[int] = []
        for part, following in zip(ordered, [*ordered[1:], {"iteration": None}], strict=True):
            if part["phase"] in ("Start", "Recover"):
                done = [iteration for iteration in done if iteration < part["iteration"]]
            if part["phase"] == "Train" and following["iteration"] == part["iteration"] + 1:
                done.append(part["iteration"])
        return done

    def batches_of_trajectories(self) -> Counter[str]:
        """In how many batches each trajectory is."""
        with closing(sqlite3.connect(self.out / "buffer.sqlite")) as db:
            rows = db.execute("SELECT members FROM batches").fetchall()
        return Counter(name for (members,) in rows for name, *_ in json.loads(members))

    def gaps(self) -> list[str]:
        """Trajectories whose segments do not follow one another."""
        ends: dict[str, int] = {}
        found = []
        with closing(sqlite3.connect(self.out / "buffer.sqlite")) as db:
            rows = db.execute("SELECT trajectory, offset, tokens FROM segments ORDER BY trajectory, offset")
            for trajectory, offset, tokens in rows:
                if offset != ends.get(trajectory, 0):
                    found.append(f"{trajectory} at {offset}")
                ends[trajectory] = offset + len(np.frombuffer(tokens, np.int32))
        return found

    def assert_nothing_lost(self) -> None:
        """Nothing that was ever on disk is lost or changed."""
        assert self.lost == []
        assert self.gaps() == []

    def assert_trained_once(self) -> None:
        """Every iteration is trained once, and no trajectory twice."""
        assert self.trained() == list(range(self.iterations))
        counts = self.batches_of_trajectories()
        assert counts
        assert max(counts.values()) == 1

    def assert_damage_refused(self) -> None:
        """Weights that were damaged on their way are refused by the tensor's name."""
        (recovery,) = (one for one in self.recoveries if one.fault.kind is Kind.CORRUPT_SEGMENT)
        assert recovery.reason is not None
        assert "it changed on the way" in recovery.reason

    def recovered(self, recovery: Recovery, **named: Any) -> None:
        """Note a recovery, here and in the file; there by what is ``named``, where a plan has no word for it."""
        self.recoveries.append(recovery)
        lines = [json.loads(line) for line in (self.out / "timeline.jsonl").read_text().splitlines()]
        starts = [step for line in lines for step in line.get("steps", ()) if step["name"] == "engineStart"]
        begin, end = recovery.at, recovery.at + (recovery.seconds or 0.0)
        within = [step["seconds"] for step in starts if begin <= step["start"] <= end]
        self.measured(recovery.written() | named, sum(within))

    def measured(self, recovery: Mapping[str, Any], engine_seconds: float = 0.0) -> None:
        """Note a recovery in a file of JSON lines from which docs/reliability.md is made.

        ``engine_seconds``: what of its seconds was the start of an engine.
        """
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        with RECORD.open("a") as file:
            file.write(json.dumps({**recovery, "engineSeconds": engine_seconds, "place": self.place}) + "\n")


def broken_run(directory: Path, faults: Sequence[Fault], changes: Mapping[str, Any]) -> BrokenRun:
    """Run the small job, do the faults to it one after the other, and see it to its end."""
    wanted = {**SMALL, **changes}
    run = BrokenRun(manifest(directory / "job.yaml", wanted), directory / "out", int(wanted["spec.iterations"]))
    process = start(run.file, run.out)
    try:
        begun = RunDirectory(run.out)
        until(lambda: process.poll() is not None or holder_of(begun), START_SECONDS, "the begin of the run")
        asyncio.run(_inflict(run, faults))
        run.status = finish(process, run.out, RUN_SECONDS)
    except BaseException:
        print(run.out.with_suffix(".log").read_text())
        raise
    finally:
        process.kill()
        process.wait()
    return run


async def _inflict(run: BrokenRun, faults: Sequence[Fault]) -> None:
    seen = Books()

    def look() -> None:
        if (run.out / "buffer.sqlite").exists():
            now = Books.of(run.out)
            run.lost.extend(seen.lost(now))
            seen.segments |= now.segments
            seen.batches |= now.batches

    async with attached(run.out) as job:
        injector = Injector(job, START_SECONDS, before=look)
        for fault in faults:
            recovery = await injector.inflict(fault)
            print(f"{fault}: hit {recovery.hit}, {recovery.seconds} s, {recovery.reason}", flush=True)
            run.recovered(recovery)
            look()
        await job.until(lambda seen: seen.record.name.final or None, RUN_SECONDS)
    look()
