# SPDX-License-Identifier: Apache-2.0
"""The process behind :mod:`tandem_orchestrator.rewards.workers`: one JSON line in, one JSON line out."""

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any, TextIO

type Score = Callable[[dict[str, Any], str], float]

LOADERS = {
    "math": "tandem_orchestrator.rewards.mathematical",
    "reasoningGym": "tandem_orchestrator.rewards.reasoning",
    "python": "tandem_orchestrator.rewards.user_callable",
}


def main(kind: str, settings: str, memory: str) -> None:
    """Serve scores of ``kind`` until standard input ends. The process may hold at most ``memory`` bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = _private_output()
    try:
        score: Score = importlib.import_module(LOADERS[kind]).load(**json.loads(settings))
    except Exception as error:  # noqa: BLE001 - whatever the user's module raises is the answer
        _say(answers, {"error": f"{type(error).__name__}: {error}"})
        return
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    _say(answers, {"ready": True})
    for line in sys.stdin:
        question = json.loads(line)
        _say(answers, _answer(score, question["record"], question["response"]))


def _answer(score: Score, record: dict[str, Any], response: str) -> dict[str, Any]:
    try:
        return {"score": float(score(record, response))}
    except Exception as error:  # noqa: BLE001 - whatever scoring code raises marks the sample
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def _private_output() -> TextIO:
    """Where answers go. What scoring code prints goes to standard error instead."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
