# SPDX-License-Identifier: Apache-2.0
"""The processes behind :mod:`tandem_orchestrator.rewards.workers`.

The first process loads the scoring code, which can take seconds, and forks a second one that answers: one JSON line
in, one JSON line out. When the second is killed, another is forked at once. Nothing of Tandem is imported here.
"""

import contextlib
import importlib
import json
import logging
import os
import re
import resource
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

type Score = Callable[[dict[str, Any], str], float]

_GRACE = 5.0
_THOUSANDS = re.compile(r"(?<=\d)\\,(?=\d{3}(?!\d))")
_EXPONENT = re.compile(r"[-+]?\d*\.?\d+[eE][-+]?\d+")


def load_math() -> Score:
    """1 if the final answer of the response equals ``record["answer"]``, by math-verify."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)

    def parsed(text: str) -> list[Any]:
        # Time is limited from outside, by killing this process: the package's own alarm cannot stop a long C call.
        plain = _THOUSANDS.sub("", text.replace(r"\$", "").replace(r"\varnothing", r"\emptyset"))
        found: list[Any] = parse(plain, parsing_timeout=None)
        return found

    def reference(answer: str) -> list[Any]:
        if _EXPONENT.fullmatch(answer):
            answer = f"{float(answer):f}"
        delimited = any(mark in answer for mark in ("$", r"\boxed", r"\(", r"\["))
        return parsed(answer if delimited else f"${answer}$") or parsed(answer)

    def score(record: dict[str, Any], response: str) -> float:
        return float(verify(reference(record["answer"]), parsed(response), timeout_seconds=None))

    score({"answer": "1"}, "$1$")  # The package compiles its grammar on first use.
    return score


def final_answer(response: str, pattern: re.Pattern[str] | None) -> str | None:
    """The first group of the last match of ``pattern``; all of the response without one, ``None`` if none matches."""
    if pattern is None:
        return response.strip()
    last = next(iter(deque(pattern.finditer(response), maxlen=1)), None)
    if last is None:
        return None
    found: str | None = last[1] if pattern.groups else last[0]
    return found.strip() if found is not None else None


def load_exact(pattern: str | None) -> Score:
    """1 if the final answer of the response is ``record["answer"]``, blanks around both aside."""
    compiled = re.compile(pattern) if pattern else None

    def score(record: dict[str, Any], response: str) -> float:
        return float(final_answer(response, compiled) == record["answer"].strip())

    return score


def load_reasoning_gym(pattern: str | None) -> Score:
    """What the task's verifier gives to the final answer; ``record`` is the package's own entry."""
    compiled = re.compile(pattern) if pattern else None
    warnings.simplefilter("ignore", SyntaxWarning)
    import reasoning_gym

    verifiers: dict[str, Callable[[str, dict[str, Any]], float]] = {}

    def score(entry: dict[str, Any], response: str) -> float:
        answer = final_answer(response, compiled)
        if answer is None:
            return 0.0
        task = entry["metadata"]["source_dataset"]
        if task not in verifiers:
            verifiers[task] = reasoning_gym.get_score_answer_fn(task)
        return float(verifiers[task](answer, entry))

    return score


def load_python(target: str) -> Score:
    """The user's own ``module:function``."""
    module, _, name = target.partition(":")
    score: Score = getattr(importlib.import_module(module), name)
    return score


LOADERS: dict[str, Callable[..., Score]] = {
    "math": load_math,
    "exact": load_exact,
    "reasoningGym": load_reasoning_gym,
    "python": load_python,
}


def main(kind: str, settings: str, memory: str) -> None:
    """Answer with scores of ``kind`` until standard input ends; an answering process holds ``memory`` bytes at most."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = _private_output()
    try:
        score = LOADERS[kind](**json.loads(settings))
    except Exception as error:  # noqa: BLE001 - whatever the user's module raises is the answer
        _say(answers, {"error": f"{type(error).__name__}: {error}"})
        return
    while True:
        child = os.fork()
        if child == 0:
            # Broken: nobody is left to answer, and the first process ends with this one.
            with contextlib.suppress(BrokenPipeError):
                _serve(answers, score, int(memory))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return


def _serve(answers: TextIO, score: Score, memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    _say(answers, {"ready": os.getpid()})
    for line in sys.stdin:
        question = json.loads(line)
        # If nobody is left to kill this process, the kernel does, also in the middle of a C call.
        signal.setitimer(signal.ITIMER_REAL, question["timeout"] + _GRACE)
        _say(answers, {"id": question["id"], **_answer(score, question["record"], question["response"])})


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
