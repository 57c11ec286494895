# SPDX-License-Identifier: Apache-2.0
"""Leases: each trajectory is waiting or with exactly one member, whatever happens."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tandem_orchestrator.leases import Holder, Leases, Task

A, B = Holder(0, "a"), Holder(1, "b")


def leases_of(*tasks: Task, members: tuple[int, ...] = (0,), seconds: float = 10.0) -> Leases:
    leases = Leases(seconds, dict.fromkeys(members, 0.0))
    for task in tasks:
        leases.add(task)
    return leases


def names(tasks: list[Task]) -> list[str]:
    return [task.trajectory for task in tasks]


def test_trajectories_that_were_long_so_far_go_first():
    leases = leases_of(Task("short", generated=3), Task("fresh"), Task("long", generated=900))
    assert names(leases.grant(A, 8, 0.0)) == ["long", "short", "fresh"]


def test_urgent_ones_go_before_cached_and_long_ones():
    leases = leases_of(Task("long", generated=900), Task("cached", former=0), Task("urgent", urgent=True))
    assert names(leases.grant(A, 8, 0.0)) == ["urgent", "cached", "long"]


def test_a_member_prefers_what_it_has_cached_and_leaves_others_theirs():
    leases = leases_of(*(Task(f"{n}", generated=100, former=n % 2) for n in range(8)), members=(0, 1))
    assert names(leases.grant(B, 4, 0.0)) == ["1", "3", "5", "7"]
    assert names(leases.grant(A, 4, 0.0)) == ["0", "2", "4", "6"]


def test_what_another_member_has_cached_is_taken_when_nothing_else_waits():
    leases = leases_of(Task("theirs", former=1))
    assert names(leases.grant(A, 8, 0.0)) == ["theirs"]


def test_the_first_to_ask_leaves_the_others_their_share():
    leases = leases_of(*(Task(f"{n}") for n in range(12)), members=(0, 1, 2))
    assert len(leases.grant(A, 256, 0.0)) == 4
    assert leases.grant(A, 256, 0.0) == []


def test_a_member_that_never_came_loses_its_share():
    leases = leases_of(*(Task(f"{n}") for n in range(12)), members=(0, 1), seconds=10.0)
    assert len(leases.grant(A, 256, 0.0)) == 6
    assert len(leases.grant(A, 256, 11.0)) == 6


def test_a_slow_member_gets_less():
    leases = Leases(10.0, {0: 0.0, 1: 0.0}, speeds={0: 1000.0, 1: 100.0})
    for n in range(22):
        leases.add(Task(f"{n}"))
    assert len(leases.grant(B, 256, 0.0)) == 2
    assert len(leases.grant(A, 256, 0.0)) == 20


def test_an_expired_lease_goes_to_another_member_and_a_renewed_one_stays():
    leases = leases_of(Task("left"), Task("kept"), seconds=10.0)
    leases.grant(A, 2, now=0.0)
    leases.renew(A, ["kept"], now=5.0)
    assert leases.expire(now=10.0) == ["left"]
    assert names(leases.grant(B, 2, now=10.0)) == ["left"]
    assert leases.holder("kept") == A


def test_a_member_that_comes_back_as_another_incarnation_gives_up_what_it_held():
    leases = leases_of(Task("one"))
    leases.grant(A, 1, 0.0)
    assert names(leases.grant(Holder(0, "reborn"), 1, 1.0)) == ["one"]


def test_renewing_what_another_holds_changes_nothing():
    leases = leases_of(Task("one"), members=(0, 1), seconds=10.0)
    leases.grant(A, 1, 0.0)
    leases.renew(B, ["one"], 9.0)
    assert leases.expire(10.0) == ["one"]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 50)), max_size=30), st.integers(1, 40))
def test_whatever_waits_goes_urgent_first_then_longest_first(tasks: list[tuple[bool, int]], capacity: int):
    leases = leases_of(*(Task(f"{n}", urgent, length) for n, (urgent, length) in enumerate(tasks)))
    granted = leases.grant(A, capacity, 0.0)
    order = [(not task.urgent, -task.generated) for task in granted]
    assert order == sorted((not urgent, -length) for urgent, length in tasks)[:capacity]


@given(st.lists(st.floats(1.0, 1000.0), min_size=1, max_size=6), st.integers(1, 200), st.randoms())
def test_each_gets_its_part_by_speed_whoever_asks_first_and_nothing_is_left(speeds: list[float], count: int, random):
    leases = Leases(10.0, dict.fromkeys(range(len(speeds)), 0.0), dict(enumerate(speeds)))
    for n in range(count):
        leases.add(Task(f"{n}"))
    members = list(range(len(speeds)))
    random.shuffle(members)
    for member in members:
        held = len(leases.grant(Holder(member, "a"), 1000, 0.0))
        assert held <= max(1, math.ceil(count * speeds[member] / sum(speeds) + 1e-9))
    assert leases.waiting == 0


@given(st.lists(st.sampled_from([None, 0, 1, 2]), max_size=40), st.lists(st.integers(0, 2), max_size=20))
def test_nobody_takes_what_another_has_cached_while_anything_else_waits(formers: list[int | None], asking: list[int]):
    leases = leases_of(*(Task(f"{n}", former=former) for n, former in enumerate(formers)), members=(0, 1, 2))
    waiting = dict(enumerate(formers))
    for member in asking:
        for task in leases.grant(Holder(member, "a"), 2, 0.0):
            own = [former for former in waiting.values() if former == member]
            free = [former for former in waiting.values() if former is None]
            assert task.former == member or (task.former is None and not own) or not (own or free)
            del waiting[int(task.trajectory)]


@given(st.integers(1, 60), st.floats(0.0, 9.0), st.integers(1, 5))
def test_what_a_dead_member_held_is_with_the_others_once_it_ran_out(count: int, later: float, others: int):
    leases = leases_of(*(Task(f"{n}") for n in range(count)), members=tuple(range(others + 1)))
    held = leases.grant(A, 1000, 0.0)
    survivors = [Holder(member + 1, "a") for member in range(others)]
    now = 10.0 + later
    assert sorted(leases.expire(now)) == sorted(names(held))
    for survivor in survivors * 2:
        leases.grant(survivor, 1000, now)
    assert leases.waiting == 0
    assert all(leases.holder(f"{n}") in survivors for n in range(count))


class LeaseMachine(RuleBasedStateMachine):
    """Compares with the plainest model: a map from trajectory to who may have it until when."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.leases = Leases(10.0, {0: 0.0, 1: 0.0, 2: 0.0})
        self.model: dict[str, tuple[Holder, float] | None] = {}
        self.incarnations = [0, 0, 0]

    def holder(self, member: int) -> Holder:
        return Holder(member, f"{member}.{self.incarnations[member]}")

    @rule(name=st.integers(0, 20), generated=st.integers(0, 3), former=st.sampled_from([None, 0, 1, 2]))
    def add(self, name: int, generated: int, former: int | None) -> None:
        self.leases.add(Task(str(name), generated=generated, former=former))
        self.model.setdefault(str(name), None)

    @rule(member=st.integers(0, 2), capacity=st.integers(0, 8))
    def grant(self, member: int, capacity: int) -> None:
        granted = names(self.leases.grant(self.holder(member), capacity, self.now))
        assert len(granted) <= capacity
        for name in granted:
            assert self.model[name] is None
            self.model[name] = (self.holder(member), self.now + 10.0)

    @rule(member=st.integers(0, 2), some=st.sets(st.integers(0, 20)))
    def renew(self, member: int, some: set[int]) -> None:
        self.leases.renew(self.holder(member), map(str, some), self.now)
        for name in map(str, some):
            held = self.model.get(name)
            if held is not None and held[0] == self.holder(member):
                self.model[name] = (held[0], self.now + 10.0)

    @rule(seconds=st.floats(0, 12))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        over = {name for name, held in self.model.items() if held is not None and held[1] <= self.now}
        assert set(self.leases.expire(self.now)) == over
        self.model |= dict.fromkeys(over)

    @rule(member=st.integers(0, 2))
    def restart(self, member: int) -> None:
        old = self.holder(member)
        self.incarnations[member] += 1
        self.leases.meet(self.holder(member), self.now)
        for name, held in self.model.items():
            if held is not None and held[0] == old:
                self.model[name] = None

    @rule(name=st.integers(0, 20))
    def done(self, name: int) -> None:
        self.leases.done(str(name))
        self.model.pop(str(name), None)

    @rule()
    def nothing_waits_for_ever(self) -> None:
        """Whoever asks for everything, again and again, in the end has what waited."""
        others = [self.holder(member) for member in range(3)]
        for holder in others * 8:
            for name in names(self.leases.grant(holder, 64, self.now)):
                self.model[name] = (holder, self.now + 10.0)
        assert self.leases.waiting == 0

    @invariant()
    def it_agrees_with_the_model(self) -> None:
        assert self.leases.waiting == sum(held is None for held in self.model.values())
        assert self.leases.leased == sum(held is not None for held in self.model.values())
        for name, held in self.model.items():
            assert self.leases.holder(name) == (held[0] if held else None)


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
