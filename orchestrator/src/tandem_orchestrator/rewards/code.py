# SPDX-License-Identifier: Apache-2.0
"""Programs run against tests in the sandbox (paper, section 2.3.5)."""

import asyncio
import re
from collections import Counter
from collections.abc import Collection

from tandem_api.errors import Problem, UserError
from tandem_api.records import Record, TestCase
from tandem_api.spec.rewards import CodeReward
from tandem_orchestrator.processors import usable_processors
from tandem_orchestrator.rewards.score import Score, Unscored
from tandem_orchestrator.sandbox.client import Sandbox, SandboxError
from tandem_orchestrator.sandbox.guarantees import Guarantees, find_out
from tandem_orchestrator.sandbox.runs import MIB, Limits, Verdict

_FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n`]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


def program_of(response: str) -> str:
    """The last fenced code block of ``response``, one that was never closed included; all of it without one."""
    blocks = _FENCED.findall(response)
    program: str = blocks[-1][1] if blocks else response
    return program


class CodeScorer:
    """The share of tests passed, or all or nothing; correct is all of them.

    As many tests run at a time as there are processors. ``verdicts`` counts how runs ended, killed ones by rule.
    ``guarantees`` is what the sandbox holds on this machine. Construction blocks for about a second.
    ``without`` names means to do without, for tests.

    Raises:
        UserError: the sandbox does not hold here what it must.
    """

    def __init__(self, reward: CodeReward, where: str, without: Collection[str] = ()) -> None:
        self._reward = reward
        self._sandbox = Sandbox(usable_processors(), without)
        self.verdicts: Counter[str] = Counter()
        self.guarantees = _holding(where, without)
        self._sandbox.start()

    async def score(self, record: Record, response: str) -> Score:
        if not record.tests:
            raise Unscored("the record has no tests", record.id)
        program = program_of(response)
        try:
            passed = await (self._count if self._reward.partial else self._all)(program, record.tests)
        except SandboxError as error:
            raise Unscored("the sandbox failed", str(error)) from error
        share = passed / len(record.tests)
        return Score(share if self._reward.partial else float(share == 1.0), share == 1.0)

    async def close(self) -> None:
        await asyncio.to_thread(self._sandbox.close)

    async def _count(self, program: str, tests: tuple[TestCase, ...]) -> int:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(self._passes(program, test)) for test in tests]
        return sum(task.result() for task in running)

    async def _all(self, program: str, tests: tuple[TestCase, ...]) -> int:
        """``len(tests)`` or, since the first failure settles it, 0."""
        for test in tests:
            if not await self._passes(program, test):
                return 0
        return len(tests)

    async def _passes(self, program: str, test: TestCase) -> bool:
        # Room for blanks and for an output that is wrong but not endless.
        output = 2 * len(test.output.encode(errors="replace")) + MIB
        limits = Limits(seconds=self._reward.timeout, memory=self._reward.memory, output=output)
        outcome = await self._sandbox.run(program, test.input, expected=test.output, limits=limits)
        self.verdicts[f"{outcome.verdict}: {outcome.rule}" if outcome.rule else str(outcome.verdict)] += 1
        return outcome.verdict is Verdict.PASSED


def _holding(where: str, without: Collection[str]) -> Guarantees:
    try:
        found = find_out(without)
    except (SandboxError, OSError) as error:
        raise UserError(Problem(where, f"the sandbox cannot be used here: {error}")) from error
    if found.fatal:
        broken = ", ".join(f"{each.promise} ({each.found})" for each in found.fatal)
        advice = "use nodes with Landlock (Linux 5.13) and seccomp user notification, or allow user namespaces"
        raise UserError(Problem(where, f"the sandbox does not hold here: {broken}; {advice}"))
    return found
