# SPDX-License-Identifier: Apache-2.0
"""What goes wrong in the model without a fence is refused by the implementation, which has it.

tests/model/traces.json holds the shortest counterexample of each mutant of tests/model/phases.pml as events. They are
played against a real etcd; the last event is the one that no protocol should let pass.
"""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from etcd_server import EtcdServer, etcd_server

from tandem_api.errors import Fenced
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import Ack, Member, Outcome, PhaseName, PhaseRecord
from tandem_phases.leadership import Leadership
from tandem_phases.membership import Membership, join
from tandem_phases.phase import SeenPhase, current, move
from tandem_phases.store import SameHolder, Store, Unchanged

KEYS = JobKeys("default", "model", "uid-1")
TTL = 60.0
TRACES: dict[str, list[str]] = json.loads((Path(__file__).parents[1] / "model" / "traces.json").read_text())["traces"]
FENCED = [
    "NO_LEADER_FENCE_IN_MOVE",
    "NO_PHASE_FENCE_IN_MOVE",
    "NO_PHASE_FENCE_IN_ACK",
    "NO_MEMBER_FENCE_IN_ACK",
    "NO_FENCE_IN_LEAD",
]


class Replay:
    """The actors of a trace, each with what it believes, and the requests that are under way."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._leadership: dict[str, Leadership] = {}
        self._seen: dict[str, SeenPhase | None] = {}
        self._members: dict[str, Membership] = {}
        self._parts: dict[str, SeenPhase] = {}
        self._sent: dict[str, tuple[Leadership, SeenPhase | None, PhaseRecord]] = {}
        self._left_behind: tuple[Membership, SeenPhase] | None = None
        self._from_behind = False

    async def play(self, event: str) -> None:
        """Raises :class:`Fenced` where the implementation refuses what the event does."""
        kind, *arguments = event.split()
        await getattr(self, "_" + kind.replace("-", "_"))(*arguments)

    async def _phase(self) -> SeenPhase | None:
        entry = await self._store.get(KEYS.phase)
        return current({KEYS.phase: entry}, KEYS) if entry else None

    async def _lead(self, orchestrator: str, _: str) -> None:
        lease = await self._store.lease(TTL)
        created = await self._store.commit((Unchanged(KEYS.leader, 0),), {KEYS.leader: orchestrator}, lease)
        self._leadership[orchestrator] = Leadership(lease, SameHolder(KEYS.leader, created))
        self._seen[orchestrator] = await self._phase()

    async def _leader_gone(self) -> None:
        await self._store.delete_prefix(KEYS.leader)

    async def _send_move(self, orchestrator: str, name: str, epoch: str) -> None:
        record = PhaseRecord(
            epoch=int(epoch), iteration=0, name=PhaseName(name), weight_version=0, world=1, members=(0, 1), started=0.0
        )
        self._sent[orchestrator] = self._leadership[orchestrator], self._seen[orchestrator], record

    async def _move(self, orchestrator: str, _name: str, _epoch: str) -> None:
        leadership, seen, record = self._sent[orchestrator]
        self._seen[orchestrator] = await move(self._store, KEYS, leadership, seen, record)

    async def _join(self, process: str, index: str, incarnation: str) -> None:
        member = Member(index=int(index), pod=process, uid=process, incarnation=incarnation, address="127.0.0.1")
        again = process in self._members
        self._members[process] = await join(self._store, KEYS, member, TTL, again=again)

    async def _see(self, process: str, _: str) -> None:
        seen = await self._phase()
        assert seen is not None
        self._parts[process] = seen

    async def _late_ack(self, process: str) -> None:
        self._left_behind = self._members[process], self._parts[process]

    async def _late(self) -> None:
        self._from_behind = True

    async def _ack(self, index: str, incarnation: str, epoch: str) -> None:
        process = next(p for p, m in self._members.items() if m.member.incarnation == incarnation)
        membership, seen = self._members[process], self._parts[process]
        if self._from_behind and self._left_behind is not None:
            membership, seen = self._left_behind
        ack = Ack(epoch=int(epoch), index=int(index), incarnation=incarnation, outcome=Outcome.DONE, seconds=0.0)
        await membership.ack(self._store, KEYS, ack, seen.fence)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
async def store(etcd: EtcdServer) -> AsyncIterator[Store]:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store(etcd.endpoints))
        await store.delete_prefix(KEYS.prefix)
        yield store


@pytest.mark.parametrize("mutant", FENCED)
async def test_the_step_that_breaks_the_mutant_is_fenced(store: Store, mutant: str) -> None:
    replay = Replay(store)
    *before, wrong = TRACES[mutant]
    for event in before:
        await replay.play(event)
    with pytest.raises(Fenced):
        await replay.play(wrong)


async def test_a_replaced_process_is_fenced_where_the_mutant_takes_its_place_back(store: Store) -> None:
    replay = Replay(store)
    await replay.play("join 0 0 1")
    await replay.play("join 1 0 2")
    with pytest.raises(Fenced, match="has taken the place"):
        await replay.play("join 0 0 1")
