# SPDX-License-Identifier: Apache-2.0
"""Who generates which trajectory now. A pure state machine: time is an argument, storage is elsewhere."""

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Holder:
    """A start of a sidecar. A new incarnation of a member does not hold what the old one held."""

    member: int
    incarnation: str


@dataclass(frozen=True, slots=True)
class Task:
    """A trajectory to be gone on with.

    ``urgent`` first (evaluation, and what must finish in this iteration), then those expected to be long:
    ``generated`` tokens so far predict it, since lengths have a heavy tail. ``former`` is the member that has its
    prefix cached, if the weights have not changed since.
    """

    trajectory: str
    urgent: bool = False
    generated: int = 0
    former: int | None = None


@dataclass(slots=True)
class _Held:
    task: Task
    holder: Holder
    expires: float


@dataclass(slots=True)
class _Member:
    seen: float
    incarnation: str


_Entry = tuple[tuple[bool, int, int], str]


@dataclass
class Leases:
    """The trajectories of a rollout that are waiting or leased.

    Life cycle of one: :meth:`add` -> :meth:`grant` -> :meth:`done`, or back to waiting by :meth:`expire`,
    :meth:`give_back` or a new incarnation of its holder. Invariant: a trajectory is waiting, or leased to exactly one
    holder, or not here.

    >>> leases = Leases(seconds=60.0, members={0: 0.0})
    >>> leases.add(Task("1-0"))
    >>> [task.trajectory for task in leases.grant(Holder(0, "a"), 8, now=1.0)]
    ['1-0']
    """

    seconds: float
    members: dict[int, float]
    """When each member was expected from; one that has not asked for ``seconds`` no longer counts for the shares."""

    speeds: Mapping[int, float] = field(default_factory=dict)
    """Tokens a second of members, where known; shares follow them."""

    _waiting: dict[str, Task] = field(default_factory=dict)
    _held: dict[str, _Held] = field(default_factory=dict)
    _by_member: dict[int, set[str]] = field(default_factory=dict)
    _known: dict[int, _Member] = field(default_factory=dict)
    _free: list[_Entry] = field(default_factory=list)
    _attached: dict[int, list[_Entry]] = field(default_factory=dict)
    _added: int = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def leased(self) -> int:
        return len(self._held)

    def holder(self, trajectory: str) -> Holder | None:
        """Who has it now."""
        held = self._held.get(trajectory)
        return held.holder if held else None

    def add(self, task: Task) -> None:
        """Put a trajectory up for lease; one that is here already stays as it is."""
        if task.trajectory in self._waiting or task.trajectory in self._held:
            return
        self._waiting[task.trajectory] = task
        self._added += 1
        entry = ((not task.urgent, -task.generated, self._added), task.trajectory)
        heap = self._free if task.former is None else self._attached.setdefault(task.former, [])
        heapq.heappush(heap, entry)

    def grant(self, holder: Holder, capacity: int, now: float) -> list[Task]:
        """Lease up to ``capacity`` trajectories, no more than the holder's share of all.

        Those that it generated before come first, then those nobody did, then those of others.
        """
        self.meet(holder, now)
        mine = self._by_member.setdefault(holder.member, set())
        room = min(capacity, self._share(holder.member, now) - len(mine))
        granted: list[Task] = []
        while len(granted) < room and (task := self._next(holder.member)) is not None:
            self._held[task.trajectory] = _Held(task, holder, now + self.seconds)
            mine.add(task.trajectory)
            granted.append(task)
        return granted

    def meet(self, holder: Holder, now: float) -> None:
        """Note that this member is alive. What an earlier incarnation of it held is waiting again."""
        known = self._known.get(holder.member)
        if known is None:
            self._known[holder.member] = _Member(now, holder.incarnation)
            return
        if known.incarnation != holder.incarnation:
            self.give_back(holder.member)
            known.incarnation = holder.incarnation
        known.seen = now

    def renew(self, holder: Holder, trajectories: Iterable[str], now: float) -> None:
        """Keep these leases for longer; those that are not the holder's are passed over."""
        for trajectory in trajectories:
            held = self._held.get(trajectory)
            if held is not None and held.holder == holder:
                held.expires = now + self.seconds

    def expire(self, now: float) -> list[str]:
        """Take back the leases that ran out, to be granted again."""
        over = [name for name, held in self._held.items() if held.expires <= now]
        for name in over:
            self._return(name)
        return over

    def give_back(self, member: int) -> list[str]:
        """Take back everything that a lost member holds."""
        lost = list(self._by_member.get(member, ()))
        for name in lost:
            self._return(name)
        return lost

    def done(self, trajectory: str) -> None:
        """Nothing more is to be generated for it for now; it is neither waiting nor leased."""
        self._waiting.pop(trajectory, None)
        held = self._held.pop(trajectory, None)
        if held is not None:
            self._by_member[held.holder.member].discard(trajectory)

    def _share(self, member: int, now: float) -> int:
        """The most that ``member`` may hold: its part, by speed, of all that is waiting or leased."""
        active = {name for name, expected in self.members.items() if expected + self.seconds > now}
        active |= {name for name, known in self._known.items() if known.seen + self.seconds > now}
        known = [self.speeds[name] for name in active if name in self.speeds]
        usual = sum(known) / len(known) if known else 1.0
        total = sum(self.speeds.get(name, usual) for name in active)
        return max(1, math.ceil((self.waiting + self.leased) * self.speeds.get(member, usual) / total))

    def _return(self, trajectory: str) -> None:
        held = self._held.pop(trajectory)
        self._by_member[held.holder.member].discard(trajectory)
        self.add(held.task)

    def _next(self, member: int) -> Task | None:
        """The best waiting task for ``member``, taken off. What is urgent comes before what is cached."""
        others = (heap for name, heap in self._attached.items() if name != member)
        heaps = [heap for heap in (self._attached.get(member, []), self._free, *others) if self._tidied(heap)]
        if not heaps:
            return None
        best = min(heaps, key=lambda heap: heap[0][0][0])
        return self._waiting.pop(heapq.heappop(best)[1])

    def _tidied(self, heap: list[_Entry]) -> bool:
        """Whether anything waits in ``heap``, once entries that were done meanwhile are off its top."""
        while heap and heap[0][1] not in self._waiting:
            heapq.heappop(heap)
        return bool(heap)
