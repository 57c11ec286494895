# SPDX-License-Identifier: Apache-2.0
"""Plans of faults: what they come to, what is wrong with them, and when a job counts as recovered from one."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tandem_api.errors import RunFailed, UserError
from tandem_api.messages.phases import PhaseName, PhaseRecord
from tandem_cli.chaos.command import app
from tandem_cli.chaos.place import Seen
from tandem_cli.chaos.plan import LASTING, SUITS, Component, Fault, Kind, Plan, RandomFaults, dumped, load
from tandem_cli.chaos.recovery import Judge

P = PhaseName
EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "chaos").glob("*.yaml"))
DRAWN = f"seed: 11\nrandom: {{count: 40, pods: 3, longest: 8s, kinds: [{', '.join(Kind)}]}}\n"


def plan(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    return file


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(UserError) as refused:
        load(plan(tmp_path, text))
    return [str(problem) for problem in refused.value.problems]


@given(seed=st.integers(0, 2**63 - 1), count=st.integers(1, 30), pods=st.integers(1, 5))
def test_whatever_is_drawn_can_happen_to_what_it_is_drawn_for(seed: int, count: int, pods: int) -> None:
    drawn = Plan(seed=seed, random=RandomFaults(count=count, kinds=tuple(Kind), pods=pods, longest="5s")).resolved()  # type: ignore[arg-type]
    assert len(drawn) == count
    for fault in drawn:
        assert fault.component in SUITS[fault.kind]
        assert fault.index < pods
        assert 0 <= fault.after <= 1.0
        assert (0 < fault.seconds <= 5.0) is (fault.kind in LASTING)


def test_the_same_seed_comes_to_the_same_faults_and_another_to_others(tmp_path: Path) -> None:
    first = load(plan(tmp_path, DRAWN)).resolved()
    assert load(plan(tmp_path, DRAWN)).resolved() == first
    assert load(plan(tmp_path, DRAWN.replace("11", "12"))).resolved() != first


def test_the_draws_of_a_seed_never_change(tmp_path: Path) -> None:
    drawn = load(plan(tmp_path, "seed: 1\nrandom: {count: 3}\n")).resolved()
    assert [str(fault) for fault in drawn] == [
        "Kill pod 0 in Handoff",
        "Stop orchestrator for 0.567s in Handoff",
        "LoseLease sidecar 0 in Handoff",
    ]


def test_what_a_plan_comes_to_is_a_plan_that_comes_to_the_same(tmp_path: Path) -> None:
    first = load(plan(tmp_path, DRAWN)).resolved()
    assert load(plan(tmp_path, dumped(first))).resolved() == first


def test_the_command_prints_that_plan(tmp_path: Path) -> None:
    file = plan(tmp_path, DRAWN)
    printed = CliRunner().invoke(app, ["plan", str(file)])
    assert printed.exit_code == 0
    assert load(plan(tmp_path, printed.stdout)).resolved() == load(plan(tmp_path, DRAWN)).resolved()


def test_every_problem_names_its_field_and_line(tmp_path: Path) -> None:
    text = """\
seed: -3
faults:
  - kind: kill
    target: {component: engin}
    count: 3
    after: 300
  - {kind: Stop, target: {component: sidecar, indx: 3}, for: 0s}
random: {}
"""
    kinds, components = ", ".join(Kind), ", ".join(Component)
    assert problems(tmp_path, text) == [
        "seed (line 1): must be at least 0; found -3",
        f'faults[0].kind (line 3): must be one of {kinds}; found "kill" (did you mean Kill?)',
        f'faults[0].target.component (line 4): must be one of {components}; found "engin" (did you mean engine?)',
        "faults[0].after (line 6): must be a duration such as 90s, 2m or 1h30m; found 300",
        "faults[0].count (line 5): unknown field here; it belongs at random.count",
        "faults[1].target.indx (line 7): unknown field (did you mean index?)",
        'faults[1].for (line 7): must be longer than 0s; found "0s"',
        "random.count (line 8): is required: How many.",
    ]


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("kind: Stop, target: {component: etcd}", "faults[0].for (line 2): is required: how long Stop lasts, such as"),
        ("kind: Kill, target: {component: etcd}, for: 3s", "faults[0].for (line 2): Kill is done at once"),
        ("kind: Kill, target: {component: etcd}, factor: 3", "faults[0].factor (line 2): belongs to SlowDown"),
        ("kind: Kill, target: {component: etcd, index: 3}", "faults[0].target.index (line 2): a job has one etcd"),
        ("kind: FillDisk, target: {component: pod}, for: 3s", "faults[0].target.component (line 2): FillDisk takes"),
        (
            "kind: CorruptSegment, target: {component: trainer}, phase: Train",
            "faults[0].phase (line 2): CorruptSegment happens in Handoff, when there are segments; found Train",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, fault: str, problem: str) -> None:
    (found,) = problems(tmp_path, f"faults:\n  - {{{fault}}}\n")
    assert found.startswith(problem)


@pytest.mark.parametrize(
    "text", ["faults: []\n", "seed: 4\n", "random: {count: 1, kinds: [FillDisk], components: [pod]}\n"]
)
def test_a_plan_from_which_no_fault_comes_is_refused(tmp_path: Path, text: str) -> None:
    assert len(problems(tmp_path, text)) == 1


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_comes_to_faults(file: Path) -> None:
    assert load(file).resolved()


def seen(name: PhaseName, epoch: int, world: int = 1, leader: int = 7, reason: str | None = None) -> Seen:
    record = PhaseRecord(
        epoch=epoch, iteration=0, name=name, weight_version=0, world=world, members=(0,), started=epoch, reason=reason
    )
    return Seen(record, leader)


def judged(fault: Fault, *then: Seen, over: int = 0) -> float | None:
    """What a judge says of phases after a fault in epoch 10; it is over before the one at place ``over``."""
    judge = Judge(fault, seen(fault.phase, 10))
    for number, moment in enumerate(then):
        if number == over:
            judge.over(then[number - 1] if number else seen(fault.phase, 10))
        if (ended := judge(moment)) is not None:
            return ended
    return None


KILLED = Fault(Kind.KILL, Component.TRAINER, P.ROLLOUT)
STOPPED = Fault(Kind.STOP, Component.SIDECAR, P.TRAIN, seconds=1.0)


def test_a_job_that_recovers_works_once_it_is_past_recover() -> None:
    assert judged(KILLED, seen(P.RELEASE, 11), seen(P.RECOVER, 12, 2), seen(P.HANDOFF, 13, 2)) == 13


def test_a_phase_that_does_not_need_the_dead_says_nothing_of_it() -> None:
    assert judged(KILLED, seen(P.RELEASE, 11), seen(P.TRAIN, 12), seen(P.HANDOFF, 13), seen(P.ROLLOUT, 14)) is None


def test_a_rollout_that_came_to_its_end_shows_that_nothing_was_missing() -> None:
    assert judged(KILLED, seen(P.RELEASE, 11), seen(P.ROLLOUT, 14), seen(P.RELEASE, 15)) == 14


def test_what_lasts_is_judged_by_a_phase_after_it() -> None:
    phases = seen(P.HANDOFF, 11), seen(P.ROLLOUT, 12), seen(P.RELEASE, 13), seen(P.TRAIN, 14)
    assert judged(STOPPED, *phases[:2], over=0) is not None
    assert judged(STOPPED, *phases[:3], over=2) is None
    assert judged(STOPPED, *phases, over=2) is not None
    assert judged(STOPPED, seen(P.HANDOFF, 11), seen(P.RECOVER, 12, 2), over=0) is None


def test_a_job_does_not_work_again_before_what_lasts_is_over() -> None:
    began = time.time()
    ended = judged(STOPPED, seen(P.HANDOFF, 11), seen(P.ROLLOUT, 12))
    assert ended is not None
    assert ended >= began


def test_a_leader_is_replaced_by_the_next_one_and_not_by_nobody() -> None:
    lost = Fault(Kind.LOSE_LEASE, Component.ORCHESTRATOR, P.TRAIN)
    judge = Judge(lost, seen(P.TRAIN, 10))
    assert judge(Seen(seen(P.TRAIN, 10).record, None)) is None
    assert judge(seen(P.HANDOFF, 11)) is None
    assert judge(seen(P.HANDOFF, 11, leader=8)) is not None


def test_corrupted_weights_that_go_into_service_are_a_failure() -> None:
    corrupted = Fault(Kind.CORRUPT_SEGMENT, Component.TRAINER, P.HANDOFF)
    assert judged(corrupted, seen(P.RECOVER, 11, 2, reason="refused"), seen(P.HANDOFF, 12, 2)) == 12
    with pytest.raises(RunFailed, match="without noticing"):
        judged(corrupted, seen(P.ROLLOUT, 11))


def test_a_job_that_fails_has_not_recovered() -> None:
    with pytest.raises(RunFailed, match="restarts used up"):
        judged(KILLED, seen(P.FAILED, 11, reason="restarts used up"))


def test_a_job_that_succeeds_needs_nothing_more() -> None:
    assert judged(KILLED, seen(P.RELEASE, 11), seen(P.SUCCEEDED, 12)) == 12
