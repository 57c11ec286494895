# SPDX-License-Identifier: Apache-2.0
"""The directory of a run: what lies where, and that one process at a time uses it."""

import contextlib
import fcntl
import os
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from pydantic import ValidationError

from tandem_api import manifest
from tandem_api.errors import Problem, UserError
from tandem_api.files import write_whole
from tandem_api.rljob import RLJobObject
from tandem_api.status import ConditionType, JobPhase, RLJobStatus

_LOCK_SECONDS = 10.0
_OWNER_ONLY = 0o600
"""Secrets of the manifest's file go into the run's directory with it."""
_MAY_CHANGE = {
    "iterations": True,
    "schedule": True,
    "checkpoint": {"keep"},
    "run_policy": {"suspend", "ttl_seconds_after_finished", "active_deadline_seconds"},
}


class RunDirectory:
    """A run's files. Entering takes the directory's lock, leaving gives it back.

    The lock is inherited by every supervisor of a container, so it is free only when the last process of an earlier
    run is gone, however that run ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.job = self.path / "job.yaml"
        self.status = self.path / "status.json"
        self.metrics = self.path / "metrics.jsonl"
        self.timeline = self.path / "timeline.jsonl"
        self.report = self.path / "report.html"
        self.logs = self.path / "logs"
        self.etcd = self.path / "etcd"
        self.checkpoints = self.path / "checkpoints"
        self.volumes = self.path / "volumes"
        self._lock = -1

    @property
    def holds_run(self) -> bool:
        return self.job.exists()

    @property
    def lock(self) -> int:
        """The lock's descriptor, to be inherited by whatever must be gone before the next run."""
        return self._lock

    def check(self, resume: bool) -> None:
        """Refuse to overwrite what is there, or to resume what is not.

        Raises:
            UserError: with what to do instead.
        """
        if resume and not self.holds_run:
            raise UserError(Problem(str(self.path), "holds no run to resume; leave out --resume to start one"))
        if not resume and self.holds_run:
            raise UserError(
                Problem(str(self.path), "holds a run already; go on with it by --resume, or choose another --out")
            )
        if not resume and self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(Problem(str(self.path), "is not an empty directory; choose another --out"))

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise self._unusable(error) from error
        end = time.monotonic() + _LOCK_SECONDS
        while not _locked(self._lock):
            if time.monotonic() > end or not self._holder_is_gone():
                os.close(self._lock)
                raise UserError(Problem(str(self.path), "is in use by another tandem run; wait for it, or stop it"))
            time.sleep(0.05)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def _holder_is_gone(self) -> bool:
        """Whether the process that took the lock has ended, so that only what it started is still ending."""
        with contextlib.suppress(ValueError, OSError):
            os.kill(int(os.pread(self._lock, 32, 0)), 0)
            return False
        return True

    def begin(self, written: manifest.Manifest, job: RLJobObject) -> RLJobObject:
        """Write job.yaml; the job with the uid that is its own from now on."""
        named = job.model_copy(update={"metadata": job.metadata.model_copy(update={"uid": str(uuid.uuid4())})})
        self._write_job(written, named)
        return named

    def resume(self, written: manifest.Manifest, job: RLJobObject) -> RLJobObject:
        """The job with the uid and the status that it had, and its new settings where those may change.

        Raises:
            UserError: it is another job, a setting changed that may not, or the run has nothing left to do.
        """
        before = manifest.load(self.job)
        if problems := _changes(before, job, written):
            raise UserError(*problems)
        status = self.read_status()
        if status.phase is JobPhase.SUCCEEDED and job.spec.iterations <= before.spec.iterations:
            raise UserError(
                Problem(
                    str(self.path), "has succeeded already; raise spec.iterations to go on, or choose another --out"
                )
            )
        # Resuming is a person's decision to try again: the budget of restarts is whole, the last end forgotten.
        kept = tuple(
            found for found in status.conditions if found.type not in (ConditionType.COMPLETE, ConditionType.FAILED)
        )
        again = {"conditions": kept, "completion_time": None, "restarts": 0, "disruptions": 0, "epoch": 0}
        resumed = job.model_copy(
            update={
                "metadata": job.metadata.model_copy(update={"uid": before.metadata.uid}),
                "status": status.model_copy(update=again),
            }
        )
        self._write_job(written, resumed)
        return resumed

    def read_status(self) -> RLJobStatus:
        """The status as last written; a new one if there is none that can be read."""
        try:
            return RLJobStatus.model_validate_json(self.status.read_text())
        except (OSError, ValidationError):
            return RLJobStatus()

    def write_status(self, status: RLJobStatus) -> None:
        """Write status.json; a reader never sees half of it."""
        text = status.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n"
        write_whole(self.status, text.encode())

    def _write_job(self, written: manifest.Manifest, job: RLJobObject) -> None:
        own = dict(written.document.value)
        own["metadata"] = {**own["metadata"], "uid": job.metadata.uid}
        text = yaml.safe_dump_all([own, *written.others], sort_keys=False, allow_unicode=True)
        try:
            write_whole(self.job, text.encode(), mode=_OWNER_ONLY)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> UserError:
        return UserError(Problem(str(self.path), f"cannot hold a run: {error.strerror}; choose another --out"))


def _changes(before: RLJobObject, now: RLJobObject, written: manifest.Manifest) -> list[Problem]:
    for field in ("name", "namespace"):
        old, new = getattr(before.metadata, field), getattr(now.metadata, field)
        if old != new:
            return [written.problem(("metadata", field), f"the run to resume is of {old}; found {new}")]
    excluded: Any = _MAY_CHANGE
    old_spec, new_spec = (job.spec.model_dump(by_alias=True, exclude=excluded, mode="json") for job in (before, now))
    problems = [
        written.problem(("spec", *path), "differs from the run to resume; only a new --out can have another value")
        for path in _differences(old_spec, new_spec)
    ]
    if now.spec.iterations < before.spec.iterations:
        problems.append(
            written.problem(
                ("spec", "iterations"), f"may only be raised; the run to resume has {before.spec.iterations}"
            )
        )
    return problems


def _differences(old: Any, new: Any) -> list[tuple[str | int, ...]]:
    """Paths of the fields in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [(name, *rest) for name in names for rest in _differences(old.get(name), new.get(name))]
    return [] if old == new else [()]


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
