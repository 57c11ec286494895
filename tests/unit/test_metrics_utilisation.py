# SPDX-License-Identifier: Apache-2.0
"""Where a pod's time goes adds up, whatever happened in a run."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_api.messages.phases import PhaseName
from tandem_api.utilisation import Account, Use, attribute, held, shares, utilisation

Lines = list[dict[str, Any]]
PHASES = [phase for phase in PhaseName if phase is not PhaseName.FAILED]


def phase(epoch: int, name: PhaseName, start: float, seconds: float, **parts: float | dict[str, float]) -> Lines:
    """The lines of a phase; ``m0=2.0`` is member 0's part, ``measured0={...}`` what it measured."""
    common = {"epoch": epoch, "iteration": 0, "phase": name.value}
    lines: Lines = [{**common, "index": None, "start": start, "seconds": seconds}]
    for index in (0, 1):
        if f"m{index}" in parts:
            measured = parts.get(f"measured{index}", {})
            part = {**common, "index": index, "start": start, "seconds": parts[f"m{index}"], "measured": measured}
            lines.append(part)
    return lines


def busy(seconds: float) -> dict[str, float]:
    return {"rolloutSeconds": seconds}


@st.composite
def timelines(draw: st.DrawFn) -> Lines:
    """Any phases after one another, with gaps, lost parts, parts longer than the phase and clocks that went back."""
    lines: Lines = []
    now = 1.7e9
    seconds = st.floats(0, 1000)
    for epoch in range(1, draw(st.integers(1, 12))):
        lasts = draw(seconds)
        parts: dict[str, Any] = {}
        for index in (0, 1):
            if draw(st.booleans()):
                parts[f"m{index}"] = draw(seconds)
                names = draw(st.sets(st.sampled_from(["rolloutSeconds", "checkpointSeconds"])))
                parts[f"measured{index}"] = {name: draw(seconds) for name in names}
        lines += phase(epoch, draw(st.sampled_from(PHASES)), now, lasts, **parts)
        now += lasts + draw(st.floats(-1, 100))
    return lines


@given(timelines())
def test_each_pods_uses_add_up_to_the_time_it_held(timeline: Lines) -> None:
    for seconds in attribute(timeline, 2).values():
        assert all(value >= 0 for value in seconds.values())
        assert sum(seconds.values()) == pytest.approx(held(timeline))
        assert not seconds or sum(shares(seconds).values()) == pytest.approx(1.0 if held(timeline) else 0.0)


@given(timelines(), st.randoms(use_true_random=False))
def test_order_and_repeated_lines_change_nothing(timeline: Lines, shuffle: random.Random) -> None:
    shuffled = timeline + timeline[: len(timeline) // 2]
    shuffle.shuffle(shuffled)
    assert attribute(shuffled, 2) == attribute(timeline, 2)


@given(timelines())
def test_the_running_account_books_all_but_the_last_phase(timeline: Lines) -> None:
    account = Account(2)
    last = max((line["epoch"] for line in timeline), default=0)
    for epoch in range(1, last + 1):
        account.add([line for line in timeline if line["epoch"] == epoch])
    whole = attribute(timeline, 2)
    open_phase = attribute([line for line in timeline if line["epoch"] == last], 2)
    for index, seconds in account.totals.items():
        for use in Use:
            assert seconds[use] == pytest.approx(whole[index][use] - open_phase[index][use], abs=1e-4)


def test_an_iteration_is_split_into_work_switches_waits_and_saving() -> None:
    timeline = [
        *phase(1, PhaseName.ROLLOUT, 100.0, 60.0),
        *phase(2, PhaseName.RELEASE, 160.0, 4.0, m0=4.0, m1=1.0, measured0=busy(60.2), measured1=busy(45.0)),
        *phase(3, PhaseName.TRAIN, 164.5, 30.0, m0=30.0, m1=29.0, measured0={"checkpointSeconds": 5.0}),
        *phase(4, PhaseName.HANDOFF, 194.5, 5.0, m0=3.0, m1=5.0),
    ]
    first, second = (
        {use: value for use, value in seconds.items() if value} for seconds in attribute(timeline, 2).values()
    )
    waited = {Use.RELEASE: 4.0, Use.CHECKPOINT: 5.0, Use.HANDOFF: 3.0, Use.BARRIER: 2.5}
    assert first == {Use.ROLLOUT: 60.0, Use.TRAIN: 25.0, **waited}
    waited = {Use.TAIL: 15.0, Use.RELEASE: 1.0, Use.HANDOFF: 5.0, Use.BARRIER: 4.5}
    assert second == {Use.ROLLOUT: 45.0, Use.TRAIN: 29.0, **waited}
    assert utilisation([first, second]) == pytest.approx((60 + 25 + 45 + 29) / (2 * 99.5))


def test_work_that_is_done_again_counts_as_recovery_and_kept_tokens_do_not() -> None:
    rollout = [
        *phase(1, PhaseName.ROLLOUT, 0.0, 60.0),
        *phase(2, PhaseName.RECOVER, 70.0, 20.0, m0=5.0, m1=20.0, measured0=busy(50.0)),
    ]
    survivor, lost = attribute(rollout, 2).values()
    assert survivor[Use.ROLLOUT] == 50.0
    assert survivor[Use.RECOVERY] == 30.0
    assert lost[Use.RECOVERY] == 90.0
    train = [*phase(1, PhaseName.TRAIN, 0.0, 60.0, m0=60.0), *phase(2, PhaseName.RECOVER, 60.0, 20.0)]
    assert attribute(train, 1)[0][Use.RECOVERY] == 80.0


def test_a_suspended_job_holds_nothing_until_it_starts_again() -> None:
    timeline = [
        *phase(1, PhaseName.SUSPENDED, 0.0, 10.0, m0=8.0),
        *phase(2, PhaseName.START, 5000.0, 30.0, m0=30.0),
    ]
    assert held(timeline) == 40.0
    assert attribute(timeline, 1)[0][Use.START] == 30.0


def test_the_shares_of_a_real_run_of_two_pods_add_up_to_one() -> None:
    path = Path(__file__).parents[1] / "timelines" / "two-pods.jsonl"
    timeline = [json.loads(line) for line in path.read_text().splitlines()]
    used = attribute(timeline, 2)
    for seconds in used.values():
        assert sum(shares(seconds).values()) == pytest.approx(1.0, abs=1e-12)
        assert {use for use, value in seconds.items() if value} == set(Use) - {Use.RECOVERY}
    assert utilisation(used.values()) == pytest.approx(0.2444, abs=1e-4)
