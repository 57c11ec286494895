# SPDX-License-Identifier: Apache-2.0
"""What a release leaves in use decides whether the engine stays: measured, with the device's figures given here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from orchestrator_world import make_job, prompt_file
from structlog.testing import capture_logs

from tandem_api.errors import MemberFailed, TryAgain
from tandem_api.messages.phases import PhaseName, PhaseRecord
from tandem_sidecar.memory import Residuals
from tandem_sidecar.steps import Part
from tandem_sidecar.switch import Switch

GIB = 2**30
RECORD = PhaseRecord(epoch=1, iteration=0, name=PhaseName.RELEASE, weight_version=0, world=1, members=(0,), started=0.0)


class Device:
    """Its memory in use, one figure after the other."""

    def __init__(self, *used: float) -> None:
        self._used: Iterator[float] = iter(used)

    def used(self) -> int:
        return int(next(self._used) * GIB)


class Engine:
    """Notes what is done to it; ``client`` is itself."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.running = True
        self.done: list[str] = []
        self.client = self

    async def sleep(self) -> None:
        if self._error:
            raise self._error
        self.done.append("sleep")

    async def stop(self) -> None:
        self.running = False
        self.done.append("stop")


class Rollouts:
    busy_seconds = None

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    async def drain(self) -> int:
        if self._error:
            raise self._error
        return 3


def switch(tmp_path: Path, engine: Engine, device: Device, rollouts: Rollouts | None = None, **spec: Any) -> Switch:
    (tmp_path / "config.json").write_text('{"vocab_size": 64}')
    job = make_job(prompt_file(tmp_path), engine={"releaseBudget": "2Gi", **spec})
    parts: Any = (engine, None, rollouts or Rollouts(), device)
    return Switch(job, tmp_path, tmp_path, *parts)


async def test_an_engine_within_the_budget_sleeps_and_stays(tmp_path: Path) -> None:
    engine, part = Engine(), Part()
    await switch(tmp_path, engine, Device(40, 1.5)).release(RECORD, part)
    assert engine.done == ["sleep"]
    assert (part.measured["bytesBefore"], part.measured["residualBytes"]) == (40 * GIB, 1.5 * GIB)
    assert part.measured["cutShort"] == 3


async def test_an_engine_that_says_it_sleeps_but_keeps_too_much_is_stopped(tmp_path: Path) -> None:
    engine, part = Engine(), Part()
    await switch(tmp_path, engine, Device(40, 2.5, 0.5)).release(RECORD, part)
    assert engine.done == ["sleep", "stop"]
    assert part.measured["residualBytes"] == 0.5 * GIB


async def test_a_device_that_others_fill_is_named_as_such(tmp_path: Path) -> None:
    with capture_logs() as told:
        await switch(tmp_path, Engine(), Device(40, 2.5, 2.25)).release(RECORD, Part())
    last = told[-1]
    assert "spec.engine.releaseBudget" in last["event"]
    assert (last["residual"], last["budget"]) == (2.25 * GIB, 2 * GIB)


async def test_an_engine_whose_rest_grows_is_stopped_before_it_exceeds_the_budget(tmp_path: Path) -> None:
    engine = Engine()
    rests = [1.0 + 0.07 * day for day in range(9)]
    figures = [figure for rest in rests for figure in (40, rest)]
    taken = switch(tmp_path, engine, Device(*figures, 0.5))
    releases = 0
    while engine.running:
        await taken.release(RECORD, Part())
        releases += 1
    assert rests[releases - 1] < 2
    assert engine.done.count("stop") == 1


async def test_an_engine_that_is_gone_has_nothing_to_release(tmp_path: Path) -> None:
    engine, part = Engine(), Part()
    engine.running = False
    await switch(tmp_path, engine, Device(0.5, 0.5)).release(RECORD, part)
    assert engine.done == []


async def test_an_engine_that_cannot_be_paused_is_stopped(tmp_path: Path) -> None:
    engine, part = Engine(), Part()
    await switch(tmp_path, engine, Device(40, 0.5), Rollouts(TryAgain("no answer"))).release(RECORD, part)
    assert engine.done == ["stop"]


@pytest.mark.parametrize("error", [TryAgain("no answer"), MemberFailed("500: a tensor is on the meta device")])
async def test_an_engine_that_cannot_sleep_is_stopped(tmp_path: Path, error: Exception) -> None:
    engine, part = Engine(error), Part()
    await switch(tmp_path, engine, Device(40, 0.5)).release(RECORD, part)
    assert engine.done == ["stop"]
    assert part.measured["residualBytes"] == 0.5 * GIB


@pytest.mark.parametrize("rests", [[1.0] * 100, [1.0, 1.2] * 50, [1.0] + [1.45] * 50])
def test_what_does_not_grow_is_no_leak(rests: list[float]) -> None:
    residuals = Residuals(2 * GIB)
    for rest in rests:
        residuals.note(int(rest * GIB))
        assert not residuals.grow


def test_a_process_started_anew_is_judged_by_itself() -> None:
    residuals = Residuals(2 * GIB)
    for rest in (1.0, *[1.9] * 10):
        residuals.note(int(rest * GIB))
    assert residuals.grow
    residuals.begin()
    residuals.note(int(1.9 * GIB))
    assert not residuals.grow
