# SPDX-License-Identifier: Apache-2.0
"""What etcd's own history says of a run, and whether the rules of the protocol held at every revision of it."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from tandem_api.errors import TryAgain
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import Ack, Member, Outcome, PhaseName, PhaseRecord
from tandem_phases.store import Change, Entry, Store

P = PhaseName


class Broken(AssertionError):
    """A rule of the protocol did not hold."""


@dataclass
class Rules:
    """Takes the changes in etcd's order, and raises :class:`Broken` at the first one that no protocol should let pass.

    ``writers`` names the orchestrator that sent each phase record, by its JSON: etcd does not say who wrote a key.
    """

    keys: JobKeys
    writers: Mapping[str, str]
    phase: PhaseRecord | None = None
    leader: Entry | None = None
    members: dict[int, Member] = field(default_factory=dict)
    acked: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Of each member the incarnations that have acked the current phase as done."""

    def take(self, change: Change) -> None:
        key, entry = change.key, change.entry
        if key == self.keys.leader:
            self._leads(entry)
        elif key.startswith(self.keys.members):
            self._joins(int(key.removeprefix(self.keys.members)), entry)
        elif key == self.keys.phase and entry is not None:
            self._moves(entry)
        elif entry is not None and key.startswith(self.keys.prefix + "acks/"):
            self._acks(key, entry.read(Ack))

    def _leads(self, entry: Entry | None) -> None:
        if entry is not None and self.leader is not None:
            raise Broken(f"{entry.value} led while {self.leader.value} did")
        self.leader = entry

    def _joins(self, index: int, entry: Entry | None) -> None:
        if entry is None:
            self.members.pop(index, None)
        else:
            self.members[index] = entry.read(Member)

    def _acks(self, key: str, ack: Ack) -> None:
        if self.phase is None or ack.epoch != self.phase.epoch:
            raise Broken(f"{key} was written in {self.phase and self.phase.epoch}")
        member = self.members.get(ack.index)
        if member is None or member.incarnation != ack.incarnation:
            raise Broken(f"{key} was written by {ack.incarnation}, while the member was {member}")
        if ack.outcome is Outcome.DONE:
            self.acked[ack.index].add(ack.incarnation)

    def _moves(self, entry: Entry) -> None:
        before, after = self.phase, entry.read(PhaseRecord)
        writer = self.writers.get(entry.value)
        if self.leader is None or self.leader.value != writer:
            raise Broken(f"epoch {after.epoch} was written by {writer}, while {self.leader} led")
        if after.epoch != (before.epoch if before else 0) + 1:
            raise Broken(f"epoch {after.epoch} followed {before and before.epoch}")
        if before is not None:
            self._follows(before, after)
        self.phase = after
        self.acked.clear()

    def _follows(self, before: PhaseRecord, after: PhaseRecord) -> None:
        step = f"{before.name} {before.epoch} -> {after.name}"
        if after.name is P.FAILED:
            raise Broken(f"{step}: {after.reason}")
        trained = before.weight_version + (before.name is P.TRAIN)
        if after.name is P.RECOVER:
            if (after.world, after.restarts) != (before.world + 1, before.restarts + 1):
                raise Broken(f"{step} without a new world")
            if after.weight_version > trained:
                raise Broken(f"{step} with weights {after.weight_version}, which nobody trained")
            return
        if (after.world, after.weight_version) != (before.world, trained):
            raise Broken(f"{step} with {after.world=}, {after.weight_version=}, {before.weight_version=}")
        if after.name is P.TRAIN and before.name not in (P.RELEASE, P.START, P.RECOVER):
            raise Broken(f"{step}: the engines held the device")
        missing = [index for index in before.members if not self.acked[index]]
        if before.name is not P.ROLLOUT and missing:
            raise Broken(f"{step} without an ack of {missing}")


class History:
    """All changes of a job's keys from etcd's first revision on, each given to the rules."""

    def __init__(self, store: Store, rules: Rules) -> None:
        self._store = store
        self.rules = rules
        self._grown = asyncio.Condition()
        self.changes: list[Change] = []
        self.broken: Broken | None = None

    async def follow(self) -> None:
        """Take in changes for ever; etcd may be away in between."""
        while True:
            after = self.changes[-1].revision if self.changes else 0
            try:
                async with self._store.watch(self.rules.keys.prefix, after) as changes:
                    async for change in changes:
                        await self._take(change)
            except TryAgain:
                await asyncio.sleep(0.05)

    async def _take(self, change: Change) -> None:
        async with self._grown:
            self.changes.append(change)
            try:
                self.rules.take(change)
            except Broken as broken:
                self.broken = self.broken or broken
            self._grown.notify_all()

    async def grow(self, count: int, seconds: float) -> None:
        """Wait for so many more changes, or so long."""
        wanted = len(self.changes) + count
        try:
            async with asyncio.timeout(seconds), self._grown:
                await self._grown.wait_for(lambda: len(self.changes) >= wanted or self.broken is not None)
        except TimeoutError:
            return

    def told(self) -> str:
        """The changes, one a line; the phase's without its members."""
        return "\n".join(
            f"{change.revision:6} {change.key.removeprefix(self.rules.keys.prefix)}: "
            f"{change.entry.value[:200] if change.entry else 'gone'}"
            for change in self.changes
        )
