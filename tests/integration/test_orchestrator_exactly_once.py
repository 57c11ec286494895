# SPDX-License-Identifier: Apache-2.0
"""For any interleaving every acknowledged token is in one place, and is trained once (phases.md, rules 6 and 7)."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from orchestrator_world import EOS, Engine, make_job, prompt_file, segment
from safetensors.numpy import load
from waiting import DEADLINE

from tandem_api.messages.work import Finish, Lease, Segment
from tandem_orchestrator.leases import Holder
from tandem_orchestrator.run import Run

ITERATIONS = 1000


class ExactlyOnce(RuleBasedStateMachine):
    """Two engines, a real buffer, and everything that can go wrong between them.

    ``kept`` is what the machine was told is on disk: the tokens of each trajectory. ``trained`` holds the tokens of
    each closed batch, which must never change, and ``spent`` the trajectories in any of them.
    """

    partial = False

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = Path(tempfile.mkdtemp(prefix="exactly-once-"))
        self.epoch = 0
        self.iteration = 0
        self.durable = 0
        self.next_token = 0
        self.kept: dict[str, tuple[int, ...]] = {}
        self.ended: set[str] = set()
        self.trained: dict[int, list[int]] = {}
        self.spent: dict[str, int] = {}
        self.sent: list[tuple[int, Segment]] = []
        self.leases: list[tuple[int, Lease]] = []

    def wait[T](self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, DEADLINE))

    @initialize()
    def start(self) -> None:
        rollout = {"promptsPerIteration": 2, "samplesPerPrompt": 2, "maxTokens": 12, "overlapIterations": 3}
        if self.partial:
            rollout["tokenBudget"] = 4
        rewards = [{"name": "any", "exact": {"pattern": "nothing"}}]
        self.job = make_job(prompt_file(self.directory, 12), rollout=rollout, rewards=rewards, iterations=ITERATIONS)
        self.begin()

    def begin(self) -> None:
        self.run = Run(self.job, self.directory / "state")
        self.wait(self.run.prepare())
        self.open()

    def open(self) -> None:
        self.wait(self.run.open_rollout(self.iteration, self.iteration, (0, 1)))
        self.epoch += 1
        self.run.serve(self.epoch)
        self.engines = [Engine(self.run, self.epoch, member) for member in (0, 1)]
        self.leases = []

    @rule(member=st.integers(0, 1), capacity=st.integers(1, 4))
    def lease(self, member: int, capacity: int) -> None:
        for lease in self.wait(self.engines[member].lease(capacity)):
            assert lease.trajectory not in self.ended
            assert lease.tokens[len(lease.tokens) - lease.offset :] == self.kept.get(lease.trajectory, ())
            self.leases.append((member, lease))

    @rule(which=st.integers(0, 50), count=st.integers(0, 6), stops=st.booleans())
    def bring_back(self, which: int, count: int, stops: bool) -> None:
        if not self.leases:
            return
        member, lease = self.leases.pop(which % len(self.leases))
        count = min(count, lease.max_new_tokens)
        tokens = tuple(2 + (self.next_token + n) % 30 for n in range(count))
        self.next_token += count
        if stops and count > 0:
            tokens = (*tokens[:-1], EOS)
        finish = Finish.STOP if stops else Finish.LENGTH if count == lease.max_new_tokens else Finish.ABORT
        self.send(member, segment(lease, tokens, finish, self.iteration))

    @rule(length=st.integers(1, 12))
    def finish_what_is_leased(self, length: int) -> None:
        """Bring every response to ``length`` tokens, as far as its lease allows, and stop there."""
        for member, lease in self.leases:
            count = min(max(1, length - lease.offset), lease.max_new_tokens)
            ends = lease.offset + count >= length
            tokens = (*range(2, count + 1), EOS) if ends else tuple(range(2, count + 2))
            self.send(member, segment(lease, tokens, Finish.STOP if ends else Finish.LENGTH, self.iteration))
        self.leases = []

    @rule(which=st.integers(0, 50), member=st.integers(0, 1))
    def send_again(self, which: int, member: int) -> None:
        if self.sent:
            _, repeated = self.sent[which % len(self.sent)]
            self.send(member, repeated)

    def send(self, member: int, made: Segment) -> None:
        self.sent.append((member, made))
        receipt = self.wait(self.engines[member].store(made))
        before = self.kept.get(made.trajectory, ())
        if made.trajectory not in receipt.stored or (not made.tokens and made.finish is Finish.ABORT):
            return
        if made.offset < len(before):
            assert before[made.offset : made.offset + len(made.tokens)] == made.tokens
            return
        assert made.offset == len(before)
        self.kept[made.trajectory] = before + made.tokens
        if made.finish is Finish.STOP or len(self.kept[made.trajectory]) >= 12:
            self.ended.add(made.trajectory)

    @rule(member=st.integers(0, 1))
    def lose_a_member(self, member: int) -> None:
        self.run.member_lost(member)

    @rule(member=st.integers(0, 1))
    def restart_a_member(self, member: int) -> None:
        self.engines[member] = Engine(self.run, self.epoch, member)
        self.leases = [(holder, lease) for holder, lease in self.leases if holder != member]

    @rule()
    def all_leases_run_out(self) -> None:
        rollout = self.run._rollout
        assert rollout is not None
        rollout.expire(float("inf"))

    @rule()
    def restart_the_orchestrator(self) -> None:
        self.wait(self.run.stop())
        self.begin()

    @rule()
    def roll_back(self) -> None:
        self.iteration = self.durable
        self.open()

    @rule(length=st.integers(1, 12))
    def fill_the_batch_and_train(self, length: int) -> None:
        self.all_leases_run_out()
        end = time.monotonic() + DEADLINE
        while not self.run.rollout_complete:
            assert time.monotonic() < end, f"the batch is not complete within {DEADLINE:g} s"
            for member in (0, 1):
                self.lease(member, 8)
            self.finish_what_is_leased(length)
            self.loop.run_until_complete(asyncio.sleep(0.001))
        self.wait(self.run.close_rollout())
        body = self.wait(self.run.batch(self.iteration))
        assert body is not None
        tensors = load(body.content)
        tokens = tensors["tokens"][tensors["lossMask"] == 1].tolist()
        assert self.trained.setdefault(self.iteration, tokens) == tokens
        row = self.wait(self.run._opened.buffer.batch(self.iteration))
        assert row is not None
        expected = [token for name, _, _ in row.members for token in self.kept[name]]
        assert tokens == expected
        for name, _, _ in row.members:
            assert self.spent.setdefault(name, self.iteration) == self.iteration
        event(f"batch {self.iteration} was trained")
        self.iteration += 1
        self.open()

    @rule()
    def make_durable(self) -> None:
        self.durable = self.iteration
        self.wait(self.run.durable(self.iteration, f"/checkpoints/{self.iteration}"))

    @invariant()
    def every_acknowledged_token_is_on_disk_once(self) -> None:
        if not self.kept:
            return
        generated = self.wait(self.run._opened.buffer.generated(self.kept))
        assert {name: tuple(made.tokens.tolist()) for name, made in generated.items()} == self.kept

    @invariant()
    def no_trajectory_is_with_two_members(self) -> None:
        if self.epoch == 0 or self.run._rollout is None:
            return
        leases = self.run._rollout._leases
        assert not set(leases._waiting) & set(leases._held)
        assert all(isinstance(held.holder, Holder) for held in leases._held.values())
        assert not (set(leases._waiting) | set(leases._held)) & self.ended

    def teardown(self) -> None:
        if self.epoch:
            self.wait(self.run.stop())
        self.loop.close()
        shutil.rmtree(self.directory)


class ExactlyOncePartial(ExactlyOnce):
    """The same with a token budget, where trajectories outlive their iteration."""

    partial = True


_SETTINGS = settings(
    max_examples=25, stateful_step_count=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestExactlyOnce = ExactlyOnce.TestCase
TestExactlyOnce.settings = _SETTINGS
TestExactlyOncePartial = ExactlyOncePartial.TestCase
TestExactlyOncePartial.settings = _SETTINGS
