# SPDX-License-Identifier: Apache-2.0
"""Tests for programming problems, made by CYaRon and kept by the paper's filters (section 2.3.5 and appendix).

``python -m tandem_orchestrator.curation.code PROBLEMS --out DIRECTORY`` writes kept.jsonl, dropped.jsonl and
report.json, and says on standard output, in a line of JSON a problem, how far it is.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TextIO

from tandem_api.errors import Problem, UserError
from tandem_api.logs import configure
from tandem_api.scalars import seconds_of, some_bytes_of
from tandem_orchestrator.curation.problems import CodeProblem, Judged, Ran, Rules, drawn, judge, read_problems, record
from tandem_orchestrator.processors import usable_processors
from tandem_orchestrator.sandbox.client import Sandbox, SandboxError
from tandem_orchestrator.sandbox.guarantees import Guarantees, find_out
from tandem_orchestrator.sandbox.runs import MIB, Limits, Outcome, Verdict

_OUTPUT = 4 * MIB
_SEEDED = "import random as _random; _random.seed({seed!r}); del _random\n"


class Judge:
    """Makes inputs of problems and runs their submissions on them, as many at a time as there are processors."""

    def __init__(self, sandbox: Sandbox, rules: Rules, limits: Limits, seed: int) -> None:
        self._sandbox = sandbox
        self._rules = rules
        self._limits = limits
        self._seed = seed

    async def judged(self, problem: CodeProblem) -> Judged:
        """What becomes of a problem.

        Raises:
            SandboxError: the sandbox fails.
        """
        submissions = drawn(problem, self._rules, self._seed)
        if submissions is None:
            detail = f"it has {len(problem.submissions)}; {self._rules.submissions} are needed"
            return Judged(problem.id, reason="too few submissions", detail=detail)
        made = await asyncio.gather(*(self._input(problem, number) for number in range(self._rules.cases)))
        inputs = list(dict.fromkeys(text for text, _ in made if text is not None))
        if len(inputs) < self._rules.least_cases:
            return Judged(problem.id, reason="the generator makes too few inputs", detail=_shortage(made, len(inputs)))
        ran = await asyncio.gather(*(self._ran(given, submissions) for given in inputs))
        return judge(problem, ran, self._rules)

    async def _input(self, problem: CodeProblem, number: int) -> tuple[str | None, str]:
        """An input, and how the generator ended."""
        source = _SEEDED.format(seed=f"{self._seed}/{problem.id}/{number}") + problem.generator
        outcome = await self._sandbox.run(source, f"{number}\n", limits=self._limits)
        return _text(outcome), _ending(outcome)

    async def _ran(self, given: str, submissions: Sequence[str]) -> Ran:
        outcomes = await asyncio.gather(
            *(self._sandbox.run(source, given, limits=self._limits) for source in submissions)
        )
        return Ran(given, tuple(map(_comparable, outcomes)))


def _text(outcome: Outcome) -> str | None:
    """What a program printed if it ended well."""
    if outcome.verdict is not Verdict.PASSED:
        return None
    try:
        return outcome.output.decode()
    except UnicodeDecodeError:
        return None


def _comparable(outcome: Outcome) -> str | None:
    """The same without what the code reward does not look at: blanks at line ends, empty lines at the end."""
    text = _text(outcome)
    return None if text is None else "\n".join(line.rstrip() for line in text.rstrip().split("\n")) + "\n"


def _ending(outcome: Outcome) -> str:
    last = outcome.complaint.strip().rpartition("\n")[2]
    return f"{outcome.verdict}: {last}" if last and outcome.verdict is Verdict.CRASHED else str(outcome.verdict)


def _shortage(made: Sequence[tuple[str | None, str]], different: int) -> str:
    endings = Counter(ending for text, ending in made if text is None)
    worst = f"; most often it ended with {endings.most_common(1)[0][0]}"[:300] if endings else ""
    return f"{different} different inputs of {len(made)} runs{worst}"


async def curate(problems: Sequence[CodeProblem], judge: Judge, out: Path) -> Counter[str]:
    """Judge the problems one by one and write what becomes of them; how many were kept, and dropped by reason."""
    counts: Counter[str] = Counter()
    with (out / "kept.jsonl").open("w") as kept, (out / "dropped.jsonl").open("w") as dropped:
        for problem in problems:
            found = await judge.judged(problem)
            if found.reason is None:
                _write(kept, record(problem, found).model_dump(mode="json", by_alias=True, exclude_defaults=True))
            else:
                _write(dropped, {"id": found.id, "reason": found.reason, "detail": found.detail})
            counts[found.reason or "kept"] += 1
            _say(id=found.id, kept=found.reason is None, reason=found.reason, tests=len(found.tests))
    return counts


def _write(file: TextIO, line: dict[str, Any]) -> None:
    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    file.flush()


def _say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--timeout", type=seconds_of, default=5.0)
    parser.add_argument("--memory", type=some_bytes_of, default=512 * MIB)
    parser.add_argument("--seed", type=int, default=0)
    for rule in fields(Rules):
        parser.add_argument(f"--{rule.name.replace('_', '-')}", type=int, default=rule.default)
    return parser.parse_args()


def _checked(arguments: argparse.Namespace) -> tuple[list[CodeProblem], Rules]:
    rules = Rules(**{rule.name: getattr(arguments, rule.name) for rule in fields(Rules)})
    if not (0 < rules.agree <= rules.submissions and 0 < rules.passing <= rules.submissions):
        raise UserError(Problem("--agree, --passing", f"must be 1 to {rules.submissions}, the number of --submissions"))
    if not 0 < rules.least_cases <= rules.cases:
        raise UserError(Problem("--least-cases", f"must be 1 to {rules.cases}, the number of --cases"))
    try:
        problems, wrong = read_problems(arguments.problems)
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(Problem(str(error.filename), f"cannot be used: {error.strerror}")) from error
    if wrong:
        raise UserError(*wrong[:20])
    return problems, rules


def _holding() -> Guarantees:
    try:
        found = find_out()
    except (SandboxError, OSError) as error:
        raise UserError(Problem("the sandbox", f"cannot be used here: {error}")) from error
    if found.fatal:
        raise UserError(
            Problem("the sandbox", f"does not hold here: {', '.join(each.promise for each in found.fatal)}")
        )
    return found


def main() -> None:
    configure(process="curate")
    arguments = _arguments()
    try:
        problems, rules = _checked(arguments)
        guarantees = _holding()
        _say(problems=len(problems))
        limits = Limits(seconds=arguments.timeout, memory=arguments.memory, output=_OUTPUT)
        with Sandbox(usable_processors()) as sandbox:
            counts = asyncio.run(curate(problems, Judge(sandbox, rules, limits, arguments.seed), arguments.out))
    except UserError as error:
        sys.exit(str(error))
    except SandboxError as error:
        sys.exit(f"the sandbox: failed: {error}")
    kept = counts.pop("kept", 0)
    report = {
        "problems": len(problems),
        "kept": kept,
        "dropped": dict(counts.most_common()),
        "rules": asdict(rules),
        "seed": arguments.seed,
        "sandbox": {"held": guarantees.held, "lacking": guarantees.lacking},
    }
    (arguments.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
