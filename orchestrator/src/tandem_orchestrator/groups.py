# SPDX-License-Identifier: Apache-2.0
"""The open groups of a run, and the rules by which they go on, settle and fill a batch. Pure."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tandem_api.messages.phases import BufferCounts
from tandem_api.messages.work import Finish
from tandem_api.spec.algorithm import RolloutSpec
from tandem_orchestrator.buffer import GroupRow, Kind, ScoreRow, SegmentRow, State, TrajectoryRow

LEAST_SAMPLES = 2
"""A group of fewer scored samples has no baseline, and is given up."""

MOST_NEW = 2
"""Batches' worth of groups that one iteration may begin (partial rollouts)."""

_UNFINISHED = (State.WAITING, State.PARTIAL)
_SETTLED = (State.SCORED, State.DROPPED)


@dataclass(slots=True)
class Group:
    """One draw of a prompt with its trajectories. ``limit`` is the longest response that fits."""

    row: GroupRow
    limit: int
    trajectories: dict[str, TrajectoryRow] = field(default_factory=dict)
    unsettled: int = 0

    @property
    def settled(self) -> bool:
        """Whether nothing more will be learned of it."""
        return self.unsettled == 0

    @property
    def scored(self) -> list[TrajectoryRow]:
        return [t for t in self.trajectories.values() if t.state is State.SCORED]

    @property
    def usable(self) -> bool:
        """Whether it could be trained on as it is now."""
        return len(self.scored) >= LEAST_SAMPLES

    @property
    def oldest(self) -> int | None:
        """The oldest weight version that wrote any of its tokens."""
        return min((t.oldest for t in self.trajectories.values() if t.oldest is not None), default=None)


class Book:
    """All open groups with their trajectories, as the buffer has them.

    Invariant: ``unsettled[kind]`` counts the groups of that kind that are not settled, and ``ready`` holds exactly the
    settled and usable training groups, by id.
    """

    def __init__(self) -> None:
        self.groups: dict[int, Group] = {}
        self.trajectories: dict[str, TrajectoryRow] = {}
        self.unsettled = dict.fromkeys(Kind, 0)
        self.ready: dict[int, Group] = {}

    def enter(self, groups: Iterable[Group], trajectories: Iterable[TrajectoryRow]) -> None:
        """Take in groups and all their trajectories."""
        entered = {group.row.id: group for group in groups}
        for trajectory in trajectories:
            group = entered[trajectory.group]
            group.trajectories[trajectory.id] = trajectory
            group.unsettled += trajectory.state not in _SETTLED
            self.trajectories[trajectory.id] = trajectory
        self.groups |= entered
        for group in entered.values():
            self.unsettled[group.row.kind] += not group.settled
            self._if_ready(group)

    def forget(self, group: Group) -> None:
        """The group is in a batch, counted, or given up."""
        del self.groups[group.row.id]
        self.ready.pop(group.row.id, None)
        self.unsettled[group.row.kind] -= not group.settled
        for name in group.trajectories:
            del self.trajectories[name]

    def of(self, kind: Kind) -> list[Group]:
        return [group for group in self.groups.values() if group.row.kind is kind]

    def group_of(self, trajectory: TrajectoryRow) -> Group:
        return self.groups[trajectory.group]

    def grow(self, row: SegmentRow, state: State, iteration: int) -> TrajectoryRow | None:
        """Bring a trajectory to what was just stored; ``None`` if it is no longer here."""
        trajectory = self.trajectories.get(row.trajectory)
        if trajectory is None:
            return None
        trajectory.state = state
        trajectory.length = row.offset + row.count
        trajectory.spent = row.count + (trajectory.spent if trajectory.spent_in == iteration else 0)
        trajectory.spent_in = iteration
        trajectory.finish = row.finish if state is State.FINISHED else None
        if row.oldest is not None:
            trajectory.oldest = row.oldest if trajectory.oldest is None else min(trajectory.oldest, row.oldest)
        return trajectory

    def catch_up(self, rows: Iterable[TrajectoryRow]) -> None:
        """Bring trajectories to what the buffer has of them.

        That is more than is known here when another orchestrator on the volume stored it, or a request broke off.
        """
        for row in rows:
            trajectory = self.trajectories.get(row.id)
            if trajectory is None or trajectory.state not in _UNFINISHED or row.length < trajectory.length:
                continue
            trajectory.state = row.state if row.state in _UNFINISHED else State.FINISHED
            trajectory.length, trajectory.oldest, trajectory.finish = row.length, row.oldest, row.finish
            trajectory.spent, trajectory.spent_in = row.spent, row.spent_in
            if row.state in _SETTLED:
                self.settle(ScoreRow(row.id, row.score, row.correct, row.error))

    def settle(self, row: ScoreRow) -> None:
        """Bring a trajectory to the verdict that was just stored."""
        trajectory = self.trajectories.get(row.trajectory)
        if trajectory is None or trajectory.state in _SETTLED:
            return
        trajectory.state = State.DROPPED if row.value is None else State.SCORED
        trajectory.score, trajectory.correct, trajectory.error = row.value, row.correct, row.error
        group = self.groups[trajectory.group]
        group.unsettled -= 1
        if group.settled:
            self.unsettled[group.row.kind] -= 1
            self._if_ready(group)

    def counts(self) -> BufferCounts:
        """Finished and unfinished trajectories, and the generated tokens of both."""
        states = Counter(trajectory.state for trajectory in self.trajectories.values())
        return BufferCounts(
            finished=states[State.FINISHED] + states[State.SCORED],
            partial=states[State.PARTIAL],
            tokens=sum(trajectory.length for trajectory in self.trajectories.values()),
        )

    def _if_ready(self, group: Group) -> None:
        if group.row.kind is Kind.TRAIN and group.settled and group.usable:
            self.ready[group.row.id] = group


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides, in one iteration, whether a trajectory goes on and when a batch is full."""

    rollout: RolloutSpec
    iteration: int
    weight_version: int

    @property
    def partial(self) -> bool:
        """Whether unfinished trajectories go on in later iterations (section 2.6.2)."""
        return self.rollout.token_budget is not None

    def left_behind(self, group: Group) -> bool:
        """Whether no rollout goes on with it: too old, or of an earlier iteration where that is not allowed."""
        if group.row.kind is Kind.EVALUATION or not self.partial:
            return group.row.iteration < self.iteration
        return self._age(group) > self.rollout.overlap_iterations

    def urgent(self, group: Group) -> bool:
        """Whether it must finish in this iteration: it is held out, or would be too old in the next."""
        if group.row.kind is Kind.EVALUATION:
            return True
        return self.partial and group.oldest is not None and self._age(group) >= self.rollout.overlap_iterations

    def allowance(self, group: Group, trajectory: TrajectoryRow) -> int:
        """New tokens that the trajectory may have now; 0 lets it rest until the next iteration."""
        left = group.limit - trajectory.length
        if self.rollout.token_budget is None or self.urgent(group):
            return left
        spent = trajectory.spent if trajectory.spent_in == self.iteration else 0
        return max(0, min(left, self.rollout.token_budget - spent))

    def state_after(self, finish: Finish, length: int, limit: int) -> State:
        """What a trajectory is in once a segment that ends with ``finish`` has brought it to ``length`` tokens."""
        ended = finish in (Finish.STOP, Finish.REPETITION) or length >= limit
        return State.FINISHED if ended else State.PARTIAL

    def room(self, book: Book, in_play: int) -> int:
        """New groups to begin in the place of those that rest, so that a batch's worth of trajectories is in play.

        None once the batch waits only for what cannot wait, and no more than :data:`MOST_NEW` batches' worth in an
        iteration: with a budget that few groups finish within, it would begin groups until chance completes enough,
        and leave the others to grow old together.
        """
        wanted = self.rollout.prompts_per_iteration
        room = wanted - -(-in_play // self.rollout.samples_per_prompt)
        if room <= 0 or len(book.ready) >= wanted:
            return 0
        begun = sum(group.row.iteration == self.iteration for group in book.of(Kind.TRAIN))
        return max(0, min(room, MOST_NEW * wanted - begun))

    def full(self, book: Book) -> bool:
        """Whether the batch is complete.

        Without a token budget every group of the iteration must be settled; with one, ``promptsPerIteration`` groups
        must be ready and none unsettled that could not wait.
        """
        if not self.partial:
            return book.unsettled[Kind.TRAIN] == 0
        if len(book.ready) < self.rollout.prompts_per_iteration:
            return False
        return not any(not group.settled and self.urgent(group) for group in book.of(Kind.TRAIN))

    def batch(self, book: Book) -> list[Group]:
        """The groups of the batch, if it were closed now, the oldest first.

        Without a token budget that is every group with enough scored samples, also when some of its samples are still
        unfinished (a rollout that hit its deadline): none of them may go on with other weights.
        """
        if self.partial:
            return [book.ready[group] for group in sorted(book.ready)][: self.rollout.prompts_per_iteration]
        return [group for group in book.of(Kind.TRAIN) if group.usable]

    def given_up(self, group: Group) -> bool:
        """Whether a training group that is not in the batch is of no use later."""
        return not self.partial or (group.settled and not group.usable)

    def _age(self, group: Group) -> int:
        """Versions between its oldest token and the weights of now; 0 for a group without any token."""
        return self.weight_version - group.oldest if group.oldest is not None else 0
