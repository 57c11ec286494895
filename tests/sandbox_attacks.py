# SPDX-License-Identifier: Apache-2.0
"""The corpus of attacks, and a program that runs it: ``python sandbox_attacks.py [WITHOUT]`` prints JSON."""

import asyncio
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tandem_orchestrator.sandbox.client import Sandbox
from tandem_orchestrator.sandbox.runs import MIB, Limits, Outcome, Verdict

CORPUS = Path(__file__).parent / "attacks"
_ENTRY = re.compile(r"^### ([^\n]+)\n([^\n]+)\n\n```python\n(.*?)```$", re.MULTILINE | re.DOTALL)
_EXPECTATION = re.compile(r"(?P<verdict>[^|,]+?)(?: \| (?P<namespaces>[^,]+))?(?:, seconds (?P<seconds>[\d.]+))?")
_TIMEOUT_SECONDS, _SECONDS = 1.0, 20.0
_MEANT_TO_READ = "given\n"


@dataclass(frozen=True, slots=True)
class Attack:
    """One program; ``verdict`` is written as the corpus does, for both kinds of isolation."""

    name: str
    program: str
    landlock: str
    namespaces: str
    seconds: float

    @property
    def limits(self) -> Limits:
        return Limits(
            seconds=self.seconds, memory=128 * MIB, output=MIB, disk=MIB, entries=32, descriptors=32, tasks=16
        )


def corpus() -> list[Attack]:
    found = []
    for path in sorted(CORPUS.glob("*.md")):
        text = path.read_text()
        entries = _ENTRY.findall(text)
        assert len(entries) == text.count("\n### ") or path.name == "README.md", f"{path.name} is malformed"
        for name, expectation, program in entries:
            match = _EXPECTATION.fullmatch(expectation)
            assert match, f"{path.name}: {name}: {expectation}"
            landlock = match["verdict"]
            seconds = float(match["seconds"] or (_TIMEOUT_SECONDS if landlock == Verdict.TIMEOUT else _SECONDS))
            found.append(Attack(f"{path.stem}: {name}", program, landlock, match["namespaces"] or landlock, seconds))
    return found


def told(outcome: Outcome) -> str:
    return f"{outcome.verdict}: {outcome.rule}" if outcome.rule else str(outcome.verdict)


async def results(sandbox: Sandbox) -> list[str]:
    """What went otherwise than it must, a line each; what is left behind included."""
    attacks = corpus()
    outcomes = await asyncio.gather(
        *(sandbox.run(each.program, _MEANT_TO_READ, expected="contained", limits=each.limits) for each in attacks)
    )
    wrong = []
    for attack, outcome in zip(attacks, outcomes, strict=True):
        expected = attack.namespaces if sandbox.described["isolation"] == "namespaces" else attack.landlock
        if told(outcome) not in expected.split(" or "):
            detail = f"{outcome.output[-200:]!r} {outcome.complaint[-300:]!r} {outcome.seconds:.2f} s"
            wrong.append(f"{attack.name}: {told(outcome)}, not {expected}: {detail}")
    return wrong + [f"left behind: {each}" for each in sandbox.left_behind()]


def main(without: str = "") -> None:
    with Sandbox(concurrent=5, without=without.split(",")) as sandbox:
        wrong = asyncio.run(results(sandbox))
        answer = sandbox.run("print('whole')", expected="whole")
        if (after := asyncio.run(answer)).verdict is not Verdict.PASSED:
            wrong.append(f"an ordinary program afterwards: {told(after)}")
        print(json.dumps({"described": sandbox.described, "user": os.getuid(), "wrong": wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:])
