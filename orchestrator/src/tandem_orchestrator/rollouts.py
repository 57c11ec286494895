# SPDX-License-Identifier: Apache-2.0
"""The rollout of one iteration: from drawn prompts to a closed batch (recipe.md; phases.md, rules 5-8)."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import structlog

from tandem_api.errors import RunFailed
from tandem_api.messages.phases import BufferCounts
from tandem_api.messages.work import Finish, Lease, LeaseRequest, Sampling, SegmentBatch, SegmentReceipt
from tandem_api.spec import RLJobSpec
from tandem_orchestrator.buffer import (
    BatchRow,
    Buffer,
    GroupRow,
    Kind,
    Outcome,
    ScoreRow,
    SegmentRow,
    State,
)
from tandem_orchestrator.buffer.rows import TrajectoryRow, trajectory_id
from tandem_orchestrator.corpus import Corpus
from tandem_orchestrator.drawing import Drawing
from tandem_orchestrator.groups import Book, Group, Rules
from tandem_orchestrator.intake import objection, row_of
from tandem_orchestrator.leases import Holder, Leases, Task
from tandem_orchestrator.results import BatchSummary, EvaluationResult, evaluation, renewed_attempts, shaped, summary
from tandem_orchestrator.results import unscored as unscored_samples
from tandem_orchestrator.serving import build_body
from tandem_orchestrator.verdicts import Verdicts

log = structlog.get_logger()

LEASE_SECONDS = 120.0
_SCORING_SECONDS = 30.0
"""At a rollout's deadline, how long what engines have finished may still be scored."""


class Rollout:
    """One iteration's generation and scoring, on top of what the buffer holds.

    Life cycle: :meth:`open`; :meth:`grant` and :meth:`accept` for as long as engines work; :meth:`full` tells when it
    is over; :meth:`close` writes the batch; :meth:`stop` ends scoring. Its memory is rebuilt from the buffer, so after
    a crash, or to begin an epoch anew, another one is opened for the same iteration.

    Invariants: without a token budget only weights of ``weight_version`` write to its trajectories; a batch that was
    closed for the iteration before a rollback is used again, and nothing is generated for it.
    """

    def __init__(
        self,
        spec: RLJobSpec,
        buffer: Buffer,
        corpus: Corpus,
        iteration: int,
        weight_version: int,
        members: Iterable[int],
        speeds: Mapping[int, float],
        now: float | None = None,
    ) -> None:
        self._spec = spec
        self._buffer = buffer
        self._corpus = corpus
        self.iteration = iteration
        self.weight_version = weight_version
        self.evaluation: EvaluationResult | None = None
        self._rules = Rules(spec.rollout, iteration, weight_version)
        self._book = Book()
        self._began = time.monotonic() if now is None else now
        self._leases = Leases(LEASE_SECONDS, dict.fromkeys(members, self._began), speeds)
        self._brought: dict[int, tuple[int, float]] = {}
        self._former: dict[str, int] = {}
        self._drawing: Drawing | None = None
        self._drawing_lock = asyncio.Lock()
        self._batch: BatchRow | None = None
        self._all_spent = False
        self._verdicts = Verdicts(buffer, corpus, self._settle, self._announce)
        self._stores = 0
        self.news = asyncio.Event()
        """Set, and replaced, when there is something new to do: take it before looking, then wait on it."""

    # Opening

    async def open(self) -> None:
        """Take over what the buffer holds of this iteration and of earlier ones, and draw what is missing."""
        await self._buffer.begin_iteration(self.iteration, self.weight_version)
        self._batch = await self._buffer.batch(self.iteration)
        await self._take_over()
        attempts, next_group = await self._buffer.attempts(), await self._buffer.next_group()
        self._drawing = Drawing(self._spec, self._corpus, self.iteration, attempts, next_group)
        self._drawing.exclude([group.row.prompt for group in self._book.of(Kind.TRAIN)])
        await self._evaluate_if_due()
        if self.trains:
            missing = self._spec.rollout.prompts_per_iteration - len(self._book.of(Kind.TRAIN))
            await self._add(self._drawing.train(max(0, missing)))
        for trajectory in list(self._book.trajectories.values()):
            self._go_on(trajectory)
        await self._move_on()
        log.info("rollout is open", iteration=self.iteration, trajectories=len(self._book.trajectories))

    @property
    def trains(self) -> bool:
        """Whether a batch is wanted: not after the last iteration, nor when there is one from before a rollback."""
        return self.iteration < self._spec.iterations and self._batch is None

    async def _take_over(self) -> None:
        rows, trajectories = await self._buffer.live()
        # After a rollback there are groups of later iterations too; they rest until their turn comes again.
        rows = [row for row in rows if row.iteration <= self.iteration and (self.trains or row.kind is Kind.EVALUATION)]
        taken = {row.id for row in rows}
        self._book.enter(map(self._group, rows), [found for found in trajectories if found.group in taken])
        left = [group for group in self._book.groups.values() if self._rules.left_behind(group)]
        if not left:
            return
        reason = "too old to go on with"
        await self._buffer.drop_groups([group.row.id for group in left], reason)
        for group in left:
            self._book.forget(group)
        log.warning("groups were given up", count=len(left), reason=reason)

    async def _evaluate_if_due(self) -> None:
        settings = self._spec.data.evaluation
        if settings is None or self._drawing is None:
            return
        if (known := await self._buffer.evaluation(self.iteration)) is not None:
            self.evaluation = EvaluationResult.parse(known)
            return
        due = self.iteration % settings.every_iterations == 0 or self.iteration == self._spec.iterations
        if due and not self._book.of(Kind.EVALUATION):
            await self._add(self._drawing.evaluation())

    async def _add(self, rows: Sequence[GroupRow]) -> list[TrajectoryRow]:
        if rows:
            await self._buffer.add_groups(rows)
        fresh = [
            TrajectoryRow(trajectory_id(row.id, sample), row.id, sample, State.WAITING, spent_in=self.iteration)
            for row in rows
            for sample in range(row.samples)
        ]
        self._book.enter(map(self._group, rows), fresh)
        return fresh

    def _group(self, row: GroupRow) -> Group:
        return Group(row, self._corpus.limit(row.kind, row.prompt))

    # Leases

    async def grant(self, request: LeaseRequest, now: float) -> tuple[Lease, ...]:
        """Leases for a member; none if nothing waits for it."""
        holder = Holder(request.member, request.incarnation)
        self._leases.meet(holder, now)
        self._leases.renew(holder, request.running, now)
        tasks = [] if self.is_full else self._leases.grant(holder, request.capacity, now)
        begun = [task.trajectory for task in tasks if task.generated]
        generated = await self._buffer.generated(begun) if begun else {}
        return tuple(
            self._lease(task.trajectory, generated[task.trajectory].tokens.tolist() if task.generated else [])
            for task in tasks
        )

    def _lease(self, name: str, earlier: list[int]) -> Lease:
        trajectory = self._book.trajectories[name]
        group = self._book.group_of(trajectory)
        return Lease(
            trajectory=name,
            tokens=(*self._corpus.prompt(group.row.kind, group.row.prompt), *earlier),
            offset=len(earlier),
            max_new_tokens=self._rules.allowance(group, trajectory),
            sampling=self._sampling(group, trajectory),
            expires=self._leases.seconds,
        )

    def _sampling(self, group: Group, trajectory: TrajectoryRow) -> Sampling:
        rollout, held_out, stop = self._spec.rollout, self._spec.data.evaluation, self._corpus.tokenizer.stop_tokens
        if group.row.kind is Kind.EVALUATION and held_out and held_out.samples_per_prompt == 1:
            return Sampling(temperature=0.0, stop_token_ids=stop)
        seed = trajectory_seed(self._spec.seed, trajectory.id, trajectory.length)
        return Sampling(temperature=rollout.temperature, top_p=rollout.top_p, seed=seed, stop_token_ids=stop)

    def expire(self, now: float) -> None:
        """Take back the leases that ran out."""
        if over := self._leases.expire(now):
            log.warning("leases ran out", count=len(over))
            self._announce()

    def lost(self, member: int) -> None:
        """A member is gone: what it held goes to the others (phases.md, rule 8)."""
        if lost := self._leases.give_back(member):
            log.warning("a lost member's leases go to others", member=member, count=len(lost))
            self._announce()

    def _go_on(self, trajectory: TrajectoryRow) -> None:
        """Do what comes next for a trajectory in its state: lease it, score it, or let it rest."""
        group = self._book.group_of(trajectory)
        if trajectory.state is State.FINISHED:
            self._verdicts.begin(trajectory.id, self._corpus.record(group.row.kind, group.row.prompt))
        elif trajectory.state in (State.WAITING, State.PARTIAL) and self._rules.allowance(group, trajectory) > 0:
            former = self._former.get(trajectory.id)
            self._leases.add(Task(trajectory.id, self._rules.urgent(group), trajectory.length, former))

    def _announce(self) -> None:
        self.news.set()
        self.news = asyncio.Event()

    # Segments

    async def accept(self, batch: SegmentBatch, now: float) -> SegmentReceipt:
        """Store what a member generated. What the receipt names as stored is on disk.

        A segment ends the sender's lease of its trajectory. It is refused, with a reason, if it makes no sense, if
        another member has the trajectory now, or if the trajectory is no longer wanted.
        """
        holder = Holder(batch.member, batch.incarnation)
        self._leases.meet(holder, now)
        receipt: dict[str, str | None] = {}
        rows: list[SegmentRow] = []
        for segment in batch.segments:
            current = self._leases.holder(segment.trajectory)
            vocabulary = self._corpus.tokenizer.vocabulary_size
            reason = objection(segment, holder, current, self._book, self._rules, vocabulary)
            if reason is None and (segment.tokens or segment.finish is not Finish.ABORT):
                rows.append(row_of(segment, self._book, self._rules))
            else:
                receipt[segment.trajectory] = reason
        with self._storing():
            outcomes = await self._buffer.append(rows, self.iteration) if rows else []
            for row, outcome in zip(rows, outcomes, strict=True):
                receipt[row.trajectory] = None if outcome.safe else outcome.value
                if outcome is Outcome.STORED and row.state and self._book.grow(row, row.state, self.iteration):
                    self._former[row.trajectory] = batch.member
                    self._brought[batch.member] = (self._brought.get(batch.member, (0, now))[0] + row.count, now)
            if any(outcome is not Outcome.STORED for outcome in outcomes):
                self._book.catch_up(await self._buffer.trajectories(row.trajectory for row in rows))
            for name in receipt:
                self._resume(name, holder)
            await self._move_on()
        refused = {name: reason for name, reason in receipt.items() if reason is not None}
        return SegmentReceipt(stored=tuple(name for name in receipt if name not in refused), refused=refused)

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        """While segments are on their way to the disk, :meth:`stop` waits."""
        self._stores += 1
        try:
            yield
        finally:
            self._stores -= 1
            self._announce()

    def _resume(self, name: str, holder: Holder) -> None:
        """A member is through with a trajectory, unless another one has it meanwhile."""
        trajectory = self._book.trajectories.get(name)
        if trajectory is None or self._leases.holder(name) not in (None, holder):
            return
        self._leases.done(name)
        self._go_on(trajectory)

    # The end

    @property
    def is_full(self) -> bool:
        """Whether the batch is complete, and the evaluation if one is due."""
        if self._book.unsettled[Kind.EVALUATION]:
            return False
        return not self.trains or self._all_spent or self._rules.full(self._book)

    async def full(self) -> None:
        """Wait until the rollout is complete. What breaks scoring as a whole is raised here."""
        while True:
            news = self.news
            if self._verdicts.failed is not None:
                raise self._verdicts.failed
            if self.is_full:
                return
            await news.wait()

    async def _settle(self, row: ScoreRow) -> None:
        """A verdict is on disk."""
        self._book.settle(row)
        await self._move_on()

    async def _move_on(self) -> None:
        """With a token budget, open new groups in the place of those that rest; tell who waits."""
        if self.trains and self._rules.partial:
            async with self._drawing_lock:
                await self._top_up()
        self._announce()

    async def _top_up(self) -> None:
        if self._drawing is None or self.is_full:
            return
        in_play = self._leases.waiting + self._leases.leased
        room = self._rules.room(self._book, in_play)
        fresh = await self._add(self._drawing.train(room)) if room else []
        for trajectory in fresh:
            self._go_on(trajectory)
        if fresh or in_play:
            return
        if not any(trajectory.state is State.FINISHED for trajectory in self._book.trajectories.values()):
            self._all_rest()

    def _all_rest(self) -> None:
        """No group may be begun any more and every trajectory has spent its budget: half a batch is enough to train on.

        With less than that, the budgets start over.
        """
        if 2 * len(self._book.ready) >= self._spec.rollout.prompts_per_iteration:
            self._all_spent = True
            return
        for trajectory in self._book.trajectories.values():
            trajectory.spent = 0
            self._go_on(trajectory)

    async def close(self) -> BatchSummary | None:
        """Write the batch of what is ready, and the evaluation; ``None`` after the last iteration.

        A batch that exists is returned as it is. Without a token budget, what is unfinished is given up.

        Raises:
            RunFailed: not a single group can be trained on.
        """
        await self._close_evaluation()
        if self._batch is not None:
            return BatchSummary.parse(self._batch.summary)
        if not self.trains:
            return None
        if not self._rules.partial:
            await self._verdicts.wait(_SCORING_SECONDS)
        groups = self._rules.batch(self._book)
        if not groups:
            reasons = unscored_samples(self._book.of(Kind.TRAIN)) or "no group was finished in time"
            raise RunFailed(f"iteration {self.iteration} has nothing to train on: {reasons}")
        members = shaped(groups, self._spec.rollout, self._spec.algorithm.length_penalty, self.iteration)
        result = summary(self.iteration, self.weight_version, groups, members)
        body = await build_body(self.iteration, members, self._buffer, self._corpus)
        await self._write(BatchRow(self.iteration, members, result.dump(), body.digest), groups)
        return result

    async def _write(self, batch: BatchRow, groups: Sequence[Group]) -> None:
        taken = {group.row.id for group in groups}
        others = [group for group in self._book.of(Kind.TRAIN) if group.row.id not in taken]
        dropped = [group for group in others if self._rules.given_up(group)]
        attempts = renewed_attempts(groups, await self._buffer.attempts())
        await self._buffer.add_batch(batch, taken, [group.row.id for group in dropped], attempts)
        self._batch = batch
        for group in (*groups, *dropped):
            self._forget(group)
        log.info("batch is closed", iteration=self.iteration, samples=len(batch.members), dropped_groups=len(dropped))

    async def _close_evaluation(self) -> None:
        groups = self._book.of(Kind.EVALUATION)
        if not groups:
            return
        self.evaluation = evaluation(self.iteration, groups)
        await self._buffer.close_evaluation(self.iteration, self.evaluation.dump(), [group.row.id for group in groups])
        for group in groups:
            self._forget(group)

    def _forget(self, group: Group) -> None:
        self._book.forget(group)
        for name in group.trajectories:
            self._leases.done(name)

    async def stop(self) -> None:
        """Tell who waits, and end scoring, which the next rollout goes on with. What is being stored is stored."""
        self._announce()
        while self._stores:
            await self.news.wait()
        await self._verdicts.stop()

    def done(self) -> tuple[int, int]:
        """Settled and wanted training trajectories."""
        wanted = self._spec.samples_per_iteration
        if not self.trains:
            return wanted, wanted
        settled = sum(len(group.trajectories) - group.unsettled for group in self._book.of(Kind.TRAIN))
        return min(settled, wanted), wanted

    def speeds(self) -> dict[int, float]:
        """Tokens a second of each member that brought any, up to the last it brought."""
        return {
            member: tokens / (last - self._began)
            for member, (tokens, last) in self._brought.items()
            if tokens and last > self._began
        }

    def counts(self) -> BufferCounts:
        """Trajectories that are in no batch."""
        return self._book.counts()


def trajectory_seed(seed: int, trajectory: str, offset: int) -> int:
    """The sampling seed of a trajectory from ``offset`` on: a continuation must not draw the same numbers again."""
    drawn = hashlib.blake2b(f"{seed}/{trajectory}/{offset}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn) >> 1
