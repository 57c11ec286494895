# SPDX-License-Identifier: Apache-2.0
"""Any order of faults of processes, networks and etcd leaves the protocol's rules whole, and the run succeeds.

The real driver, attendance, settlement, buffer, workers and etcd, with a proxy between each process and etcd.
:class:`phases_history.Rules` checks etcd's own history after every step. Each of these, taken away from the code, was
found within twelve examples: in an ack the fence of the phase, and that of the place; in a move the fence of the
leadership, and that of the phase; in lead that nobody leads; in a return to one's place that nobody has taken it; of
the barrier one of the acks. What it found besides: watches that were never told of a connection closed under them, and
trajectories on disk that a rollout waited for, since another process or a request that broke off had stored them.
"""

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd_proxy import EtcdProxy
from etcd_server import EtcdServer, etcd_server
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from phases_world import MEMBERS, Process, World

import tandem_orchestrator.driver
import tandem_orchestrator.rollouts
import tandem_sidecar.worker

TTL = 2.0
"""Seconds of a lease, the shortest that etcd grants."""
SOON = 120.0
"""Seconds within which a job whose faults are over succeeds; it takes a few."""
STEP = 0.5


def slow(proxy: EtcdProxy) -> None:
    proxy.delay = 0.05


NETWORKS = {"slow": slow, "blocked": EtcdProxy.block, "cut": EtcdProxy.cut, "healed": EtcdProxy.heal}
ANY = st.integers(0, 10**6)
AFTER = st.integers(0, 6)
"""How much happens after a fault: so many changes in etcd."""


class Faults(RuleBasedStateMachine):
    """Breaks a job; see :func:`machine`."""

    etcd: EtcdServer
    directory: Path
    loop: asyncio.Runner
    _numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        number = next(self._numbers)
        directory = self.directory / str(number)
        directory.mkdir()
        self._world = World(directory, self.etcd, f"job-{number}", number)
        self.loop.run(self._world.begin())

    def _after(self, changes: int) -> None:
        if not self._world.over:
            self.loop.run(self._world.history.grow(changes, STEP))

    def _one(self, process: int) -> list[Process]:
        """A process that lives, if any does."""
        processes = self._world.processes
        return [processes[process % len(processes)]] if processes else []

    @rule(process=ANY, network=st.sampled_from(sorted(NETWORKS)), after=AFTER)
    def network_changes(self, process: int, network: str, after: int) -> None:
        for one in self._one(process):
            NETWORKS[network](one.proxy)
        self._after(after)

    @rule(process=ANY, after=AFTER)
    def process_dies(self, process: int, after: int) -> None:
        for one in self._one(process):
            self.loop.run(self._world.kill(one))
        self._after(after)

    @rule(index=st.integers(0, MEMBERS - 1), after=AFTER)
    def pod_comes(self, index: int, after: int) -> None:
        self.loop.run(self._world.add_pod(index))
        self._after(after)

    @rule(index=st.integers(0, MEMBERS - 1), after=AFTER)
    def pod_is_replaced_before_its_ack_arrives(self, index: int, after: int) -> None:
        ack = self._world.last_ack(index)
        self.loop.run(self._world.add_pod(index))
        self._after(1)
        if ack is not None:
            self.loop.run(self._world.repeat(ack))
        self._after(after)

    @rule(after=AFTER)
    def orchestrator_comes(self, after: int) -> None:
        if len(self._world.orchestrators) < 2:
            self.loop.run(self._world.add_orchestrator())
        self._after(after)

    @rule(process=ANY, after=AFTER)
    def lease_ends(self, process: int, after: int) -> None:
        for one in self._one(process):
            self.loop.run(self._world.expire(one))
        self._after(after)

    @rule(request=ANY, after=AFTER)
    def request_arrives_again(self, request: int, after: int) -> None:
        sent = self._world.sent
        if sent:
            self.loop.run(self._world.repeat(sent[-1 - request % min(len(sent), 24)]))
        self._after(after)

    @rule(after=AFTER)
    def etcd_restarts(self, after: int) -> None:
        self.loop.run(self._world.restart_etcd())
        self._after(after)

    @rule(after=AFTER)
    def nothing_happens(self, after: int) -> None:
        self._after(3 * after)

    @rule()
    def ended_processes_come_back(self) -> None:
        self.loop.run(self._world.tend())

    @invariant()
    def the_rules_hold(self) -> None:
        self._world.check()

    def teardown(self) -> None:
        try:
            self.loop.run(self._world.finish(SOON))
        finally:
            self.loop.run(self._world.end())


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def machine(etcd: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Faults]]:
    monkeypatch.setattr(tandem_orchestrator.rollouts, "LEASE_SECONDS", TTL)
    for module in (tandem_orchestrator.driver, tandem_sidecar.worker):
        monkeypatch.setattr(module, "LEASE_SECONDS", TTL)
        monkeypatch.setattr(module, "_RETRY_SECONDS", 0.1)
    with asyncio.Runner() as loop:
        yield type("Faults", (Faults,), {"etcd": etcd, "directory": tmp_path, "loop": loop})


def explore(machine: type[Faults], examples: int, steps: int, *, same: bool) -> None:
    """No shrinking: real processes do not do the same thing twice."""
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=same,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)


def test_the_rules_hold_in_any_order_of_faults(machine: type[Faults]) -> None:
    explore(machine, examples=4, steps=12, same=True)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_rules_hold_in_many_orders_of_faults(machine: type[Faults]) -> None:
    explore(machine, examples=150, steps=25, same=False)
