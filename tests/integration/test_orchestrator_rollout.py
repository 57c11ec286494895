# SPDX-License-Identifier: Apache-2.0
"""Rollouts from drawn prompts to served batches, on a real buffer, with an engine that needs no model."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from orchestrator_world import (
    EOS,
    Engine,
    long_tailed,
    make_job,
    prompt_file,
    right_answer,
    running,
    segment,
    serving,
    tensors_of,
    token_ids,
)
from safetensors.numpy import load
from waiting import DEADLINE

from tandem_api.errors import Fenced, RunFailed, TryAgain, UserError
from tandem_api.messages.batches import BATCH_TENSORS, WARMUP_TENSORS
from tandem_api.messages.work import Finish, Lease
from tandem_orchestrator.results import BatchSummary
from tandem_orchestrator.run import Run


async def iterate(
    run: Run, iteration: int, answer: Callable[[Lease], tuple[int, ...]] = right_answer
) -> BatchSummary | None:
    """A whole rollout with one engine."""
    await run.open_rollout(iteration, iteration, (0,))
    run.serve(iteration + 1)
    engine = Engine(run, iteration + 1, answer=answer)
    async with asyncio.timeout(DEADLINE):
        full = asyncio.create_task(run.rollout_full())
        while not full.done():
            await engine.exhaust(iteration)
            await asyncio.wait([full], timeout=0.01)
        await full
    return await run.close_rollout()


async def test_a_batch_holds_what_the_engine_sent(tmp_path: Path):
    async with running(tmp_path) as run:
        summary = await iterate(run, 0)
        tensors = await tensors_of(run, 0)
    assert summary is not None
    assert (summary.groups, summary.samples, summary.accuracy_mean) == (4, 8, 1.0)
    assert sorted(tensors) == sorted(BATCH_TENSORS)
    prompt = tensors["promptLengths"]
    for index, (start, end) in enumerate(zip(tensors["offsets"], tensors["offsets"][1:], strict=False)):
        at = slice(start + prompt[index], end)
        assert tensors["tokens"][end - 1] == EOS
        assert tensors["lossMask"][start:end].sum() == end - start - prompt[index]
        assert (tensors["versions"][start : start + prompt[index]] == -1).all()
        assert (tensors["versions"][at] == 0).all()
        assert (tensors["engineLogprobs"][at] == -0.5).all()
        assert (tensors["engineLogprobs"][start : start + prompt[index]] == 0).all()
    assert tensors["groups"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert tensors["rewards"].tolist() == [1.0] * 8


async def test_rewards_are_shaped_by_length_once_the_warmup_of_the_penalty_is_over(tmp_path: Path):
    def answer(lease: Lease) -> tuple[int, ...]:
        working = token_ids("aaaa" if lease.trajectory.endswith("-0") else "")
        return (*working, *right_answer(lease))

    algorithm = {"lengthPenalty": {"weight": 0.5, "warmupIterations": 1}}
    async with running(tmp_path, algorithm=algorithm) as run:
        before, after = await iterate(run, 0, answer), await iterate(run, 1, answer)
        unshaped, shaped = await tensors_of(run, 0), await tensors_of(run, 1)
    assert unshaped["rewards"].tolist() == [1.0] * 8
    assert shaped["rewards"].tolist() == [0.75, 1.25] * 4
    assert before is not None
    assert after is not None
    assert (before.reward_mean, after.reward_mean) == (1.0, 1.0)


async def test_a_response_cut_for_repetition_is_finished_and_loses_the_penalty(tmp_path: Path):
    repetition = {"repetition": {"ngram": 4, "times": 4, "penalty": 0.25}}
    async with running(tmp_path, rollout=repetition) as run:
        engine = await serving(run)
        looping, *others = await engine.lease()
        await engine.store(segment(looping, right_answer(looping)[:-1], Finish.REPETITION))
        await engine.store(*(engine.respond(lease, 0) for lease in others))
        assert await engine.lease() == ()
        async with asyncio.timeout(DEADLINE):
            await run.rollout_full()
        summary = await run.close_rollout()
        tensors = await tensors_of(run, 0)
    assert summary is not None
    assert summary.finishes == {"Repetition": 1, "Stop": 7}
    assert (summary.reward_mean, sorted(tensors["rewards"].tolist())) == (1.0, [0.75, *[1.0] * 7])


async def test_the_same_job_draws_the_same_prompts(tmp_path: Path):
    drawn = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        async with running(tmp_path / name) as run:
            for iteration in range(3):
                await iterate(run, iteration)
            drawn.append([(await tensors_of(run, iteration))["tokens"].tolist() for iteration in range(3)])
    assert drawn[0] == drawn[1]


async def test_without_a_budget_segments_of_other_weights_are_refused(tmp_path: Path):
    async with running(tmp_path) as run:
        await run.open_rollout(1, 1, (0,))
        run.serve(5)
        engine = Engine(run, 5)
        stale, fresh = (await engine.lease())[:2]
        receipt = await engine.store(
            segment(stale, (EOS,), Finish.STOP, version=0), segment(fresh, (EOS,), Finish.STOP, version=1)
        )
    assert receipt.stored == (fresh.trajectory,)
    assert "weights 0 wrote it" in receipt.refused[stale.trajectory]


async def test_without_a_budget_every_batch_is_of_its_iterations_weights_alone_and_begins_afresh(tmp_path: Path):
    async with running(tmp_path) as run:
        for iteration in range(3):
            await run.open_rollout(iteration, iteration, (0,))
            run.serve(iteration + 1)
            engine = Engine(run, iteration + 1)
            leases = await engine.lease()
            assert {lease.offset for lease in leases} == {0}
            await engine.store(*(engine.respond(lease, iteration) for lease in leases[:-1]))
            await engine.store(segment(leases[-1], token_ids("=1"), Finish.ABORT, version=iteration))
            await run.close_rollout()
            tensors = await tensors_of(run, iteration)
            assert np.unique(tensors["versions"][tensors["lossMask"] == 1]).tolist() == [iteration]


async def test_a_refused_trajectory_is_leased_again(tmp_path: Path):
    async with running(tmp_path) as run:
        engine = await serving(run)
        leases = await engine.lease()
        receipt = await engine.store(segment(leases[0], (10_000,), Finish.STOP))
        assert "token id is outside" in receipt.refused[leases[0].trajectory]
        assert [lease.trajectory for lease in await engine.lease()] == [leases[0].trajectory]


async def test_a_cut_trajectory_goes_on_from_its_stored_tokens_with_another_seed(tmp_path: Path):
    async with running(tmp_path) as run:
        engine = await serving(run)
        first = (await engine.lease())[0]
        await engine.store(segment(first, token_ids("=1"), Finish.ABORT))
        (again,) = await engine.lease()
        assert again.trajectory == first.trajectory
        assert again.tokens == first.tokens + token_ids("=1")
        assert (again.offset, again.max_new_tokens) == (2, first.max_new_tokens - 2)
        assert again.sampling.seed != first.sampling.seed


async def test_what_a_lost_member_held_goes_to_the_others(tmp_path: Path):
    async with running(tmp_path) as run:
        await run.open_rollout(0, 0, (0, 1))
        run.serve(1)
        dead, alive = Engine(run, 1, member=0), Engine(run, 1, member=1)
        held = {lease.trajectory for lease in await dead.lease()}
        await alive.lease()
        run.member_lost(0)
        assert {lease.trajectory for lease in await alive.lease()} <= held
        late = await dead.store(segment((await dead.lease())[0], (EOS,), Finish.STOP))
        assert len(late.stored) == 1


async def test_members_of_another_epoch_get_nothing(tmp_path: Path):
    async with running(tmp_path) as run:
        await run.open_rollout(0, 0, (0,))
        run.serve(5)
        with pytest.raises(Fenced, match="epoch 4 is over"):
            await Engine(run, 4).lease()
        with pytest.raises(TryAgain, match="epoch 6 is not served yet"):
            await Engine(run, 6).lease()


async def test_evaluation_is_greedy_counted_apart_and_due_every_n_iterations_and_at_the_end(tmp_path: Path):
    evaluation = {"path": str(prompt_file(tmp_path, 8, "held-out.jsonl", first=100)), "everyIterations": 2}

    def answer(lease: Lease) -> tuple[int, ...]:
        if lease.sampling.temperature == 0.0:
            return right_answer(lease) if lease.sampling.seed is None else (EOS,)
        return (EOS,)

    results = []
    async with running(tmp_path, data={"evaluation": evaluation}) as run:
        for iteration in range(4):
            summary = await iterate(run, iteration, answer)
            assert (summary is None) == (iteration == 3)
            results.append(run.accuracy(iteration))
    assert results == [1.0, None, 1.0, 1.0]


async def test_a_deadline_trains_on_what_is_finished_and_gives_up_the_rest(tmp_path: Path):
    async with running(tmp_path) as run:
        engine = await serving(run)
        leases = await engine.lease()
        whole = [lease for lease in leases if lease.trajectory.split("-")[0] == leases[0].trajectory.split("-")[0]]
        await engine.store(*(engine.respond(lease, 0) for lease in whole))
        assert not run.rollout_complete
        summary = await run.close_rollout()
        assert summary is not None
        assert (summary.groups, summary.samples) == (1, 2)
        rest = next(lease for lease in leases if lease not in whole)
        assert rest.trajectory in (await engine.store(engine.respond(rest, 0))).refused


async def test_a_rollout_without_a_single_scored_group_fails_with_the_reasons(tmp_path: Path):
    rewards = [{"name": "judge", "judge": {"url": "http://127.0.0.1:9/v1", "model": "none"}}]
    async with running(tmp_path, rewards=rewards) as run:
        await run.open_rollout(0, 0, (0,))
        run.serve(1)
        await Engine(run, 1).exhaust(0)
        async with asyncio.timeout(DEADLINE):
            await run.rollout_full()
        with pytest.raises(RunFailed, match=r"nothing to train on: \{'the judge does not answer': 8\}"):
            await run.close_rollout()


async def test_after_a_rollback_the_same_batches_are_served_and_nothing_is_generated(tmp_path: Path):
    async with running(tmp_path) as run:
        await iterate(run, 0)
        await run.durable(1, "/checkpoints/1")
        await iterate(run, 1)
        await run.open_rollout(2, 2, (0,))
        run.serve(3)
        cut = (await Engine(run, 3).lease())[0]
        await Engine(run, 3).store(segment(cut, token_ids("=1"), Finish.ABORT, version=2))
        served = (await tensors_of(run, 1))["tokens"].tolist()
    async with running(tmp_path) as run:
        assert await run.resume_point() == type(await run.resume_point())(1, "/checkpoints/1")
        assert run.batch_ready(1)
        await run.open_rollout(1, 1, (0,))
        run.serve(9)
        async with asyncio.timeout(DEADLINE):
            await run.rollout_full()
        assert await Engine(run, 9).lease() == ()
        assert await run.close_rollout() == run.batch_summary(1)
        assert (await tensors_of(run, 1))["tokens"].tolist() == served
        await run.open_rollout(2, 2, (0,))
        run.serve(10)
        assert cut.trajectory in {lease.trajectory for lease in await Engine(run, 10).lease() if lease.offset == 2}


async def test_an_interrupted_rollout_goes_on_where_it_was(tmp_path: Path):
    async with running(tmp_path) as run:
        engine = await serving(run)
        leases = await engine.lease()
        await engine.store(*(engine.respond(lease, 0) for lease in leases[:3]))
    async with running(tmp_path) as run:
        await run.open_rollout(0, 0, (0,))
        run.serve(2)
        again = {lease.trajectory for lease in await Engine(run, 2).lease()}
        assert again == {lease.trajectory for lease in leases[3:]}


async def test_with_a_budget_no_trajectory_exceeds_it_and_short_ones_are_batched_first(tmp_path: Path):
    rollout = {"tokenBudget": 12, "maxTokens": 32, "overlapIterations": 4, "promptsPerIteration": 4}
    answer = long_tailed(3, 30)
    versions: list[dict[str, np.ndarray]] = []
    async with running(tmp_path, rollout=rollout, iterations=8) as run:
        for iteration in range(8):
            summary = await iterate(run, iteration, answer)
            assert summary is not None
            assert 2 <= summary.groups <= 4
            assert summary.age_max <= 4
            versions.append(await tensors_of(run, iteration))
    spread = [np.unique(batch["versions"][batch["lossMask"] == 1]) for batch in versions]
    assert any(len(found) > 1 for found in spread)
    for batch in versions:
        for start, end, prompt in zip(batch["offsets"], batch["offsets"][1:], batch["promptLengths"], strict=False):
            written = batch["versions"][start + prompt : end]
            assert (np.diff(written) >= 0).all()
            assert np.unique(written, return_counts=True)[1].max() <= 12


async def test_a_budget_that_few_groups_finish_within_starts_over_instead_of_flooding_the_buffer(tmp_path: Path):
    rollout = {"tokenBudget": 4, "maxTokens": 32, "promptsPerIteration": 4}
    begun: list[int] = []
    async with running(tmp_path, rollout=rollout, iterations=3) as run:
        for iteration in range(3):
            first = await run._opened.buffer.next_group()
            summary = await iterate(run, iteration, lambda lease: (*token_ids("a" * 10), EOS))
            assert summary is not None
            assert summary.groups >= 2
            begun.append(await run._opened.buffer.next_group() - first)
    assert max(begun) <= 8


async def test_a_trajectory_at_the_bound_of_its_age_is_finished_not_thrown_away(tmp_path: Path):
    rollout = {"tokenBudget": 2, "maxTokens": 32, "overlapIterations": 1, "promptsPerIteration": 2}

    def answer(lease: Lease) -> tuple[int, ...]:
        return (*token_ids("a" * 20), EOS) if int(lease.trajectory.split("-")[0]) % 3 == 0 else (EOS,)

    async with running(tmp_path, rollout=rollout, iterations=6) as run:
        long_ones = []
        for iteration in range(6):
            summary = await iterate(run, iteration, answer)
            assert summary is not None
            assert summary.age_max <= 1
            long_ones.append(summary.response_tokens_max)
    assert max(long_ones) == 21


async def test_when_all_prompts_are_in_play_and_rest_the_budget_is_lifted(tmp_path: Path):
    rollout = {"tokenBudget": 2, "maxTokens": 16, "promptsPerIteration": 24}
    async with running(tmp_path, rollout=rollout) as run:
        summary = await iterate(run, 0, lambda lease: (*token_ids("a" * 9), EOS))
    assert summary is not None
    assert (summary.groups, summary.response_tokens_max) == (24, 10)


async def test_warmup_rows_carry_the_loss_on_the_response_alone(tmp_path: Path):
    rows = tmp_path / "warmup.jsonl"
    rows.write_text('{"id": "w", "domain": "sum", "prompt": "1 + 2 =", "response": "=3"}\n')
    async with running(tmp_path, data={"warmup": {"path": str(rows)}}) as run:
        assert run.warmup is not None
        tensors = load(run.warmup.content)
    assert sorted(tensors) == sorted(WARMUP_TENSORS)
    assert tensors["tokens"].tolist() == [*token_ids("1 + 2 ="), *token_ids("=3"), EOS]
    assert tensors["lossMask"].tolist() == [0] * 7 + [1] * 3


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"rollout": {"promptsPerIteration": 64}}, "spec.rollout.promptsPerIteration: is 64, but there are only 24"),
        (
            {"engine": {"maxModelLen": 8}, "rollout": {"maxTokens": 4}},
            "its prompt has 9 tokens; engine.maxModelLen is 8",
        ),
    ],
)
async def test_a_job_that_cannot_work_is_refused_before_anything_is_started(
    tmp_path: Path, parts: dict[str, Any], message: str
):
    run = Run(make_job(prompt_file(tmp_path, 24), **parts), tmp_path / "state")
    with pytest.raises(UserError, match=message):
        await run.prepare()


async def test_a_prompt_outside_the_tokenizer_is_named(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "odd", "domain": "sum", "prompt": "1 × 1", "answer": "1"}\n')
    run = Run(make_job(path), tmp_path / "state")
    with pytest.raises(UserError, match="record odd: cannot be written with the model's tokenizer"):
        await run.prepare()
