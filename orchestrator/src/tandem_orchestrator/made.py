# SPDX-License-Identifier: Apache-2.0
"""Problems made by the package reasoning-gym, as records."""

import difflib
import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from tandem_api.errors import Problem, UserError
from tandem_api.records import Record
from tandem_api.spec.data import ReasoningGym

DOMAIN = "reasoning-gym"
"""Domain of all made records."""

_ATTEMPTS = 4


def made_records(source: ReasoningGym, seed: int, where: str, wanted: Callable[[Record], bool]) -> Iterator[Record]:
    """Up to ``source.size`` problems of a task that are ``wanted``, in the order of its seed.

    Where some are not wanted, later problems take their place, as long as ``4 * size`` problems suffice. The records'
    ``meta`` is what the package's own verifier needs.

    Raises:
        UserError: the task or its config is unknown to the package.
    """
    problems = _problems(source, seed, where)
    left = source.size
    for index in range(_ATTEMPTS * source.size):
        if left == 0:
            return
        record = _record(source.task, problems[index], f"{source.task}-{_seed(source, seed)}-{index}")
        if wanted(record):
            left -= 1
            yield record


def _seed(source: ReasoningGym, seed: int) -> int:
    return seed if source.seed is None else source.seed


def _problems(source: ReasoningGym, seed: int, where: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    if source.task not in DATASETS:
        close = difflib.get_close_matches(source.task, DATASETS, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else f"; the package has {len(DATASETS)} tasks"
        raise UserError(Problem(f"{where}.task", f"reasoning-gym has no task {source.task!r}{hint}"))
    options = {**source.config, "seed": _seed(source, seed), "size": _ATTEMPTS * source.size}
    try:
        return reasoning_gym.create_dataset(source.task, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(Problem(f"{where}.config", f"task {source.task} refuses it: {error}")) from error


def _record(task: str, problem: dict[str, Any], name: str) -> Record:
    # Through JSON, as the buffer and the scoring processes see it: tuples become lists, odd values their text.
    meta = json.loads(json.dumps(problem.get("metadata") or {}, default=str))
    meta.setdefault("source_dataset", task)
    return Record(id=name, domain=DOMAIN, prompt=problem["question"], answer=_text(problem.get("answer")), meta=meta)


def _text(answer: Any) -> str | None:
    return answer if answer is None or isinstance(answer, str) else str(answer)
