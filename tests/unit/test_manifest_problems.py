# SPDX-License-Identifier: Apache-2.0
"""Each mistake in a manifest is told once, with its field and its line."""

from pathlib import Path

import pytest
from manifest_cases import BAD, GOOD, MANIFESTS, Case

from tandem_api.errors import Problem, UserError
from tandem_api.manifest import load, problems, read
from tandem_api.spec.model import DType


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_a_mistake_is_told_once_with_its_field_and_line(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(case.text)

    found = problems(read(path))

    assert [problem.where for problem in found] == [case.field]
    assert case.says in found[0].message
    assert found[0].line == case.line


def test_there_are_many_mistakes_and_each_has_its_own_name() -> None:
    assert len({case.name for case in BAD}) == len(BAD) >= 45


@pytest.mark.parametrize("name", GOOD)
def test_a_good_manifest_has_no_problems(name: str) -> None:
    assert problems(read(MANIFESTS / f"{name}.yaml")) == []


def test_all_mistakes_of_a_manifest_are_told_at_once_from_top_to_bottom(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    whole = (MANIFESTS / "whole.yaml").read_text()
    path.write_text(whole.replace("tau: 0.1", "tau: 0").replace("seed: 1", "sead: 1").replace("name: whole", "name: W"))

    with pytest.raises(UserError) as caught:
        load(path)

    assert [problem.where for problem in caught.value.problems] == [
        "metadata.name",
        "spec.sead",
        "spec.algorithm.mirrorDescent.tau",
    ]


def test_a_loaded_job_has_the_defaults_and_the_other_objects_stay_aside() -> None:
    path = MANIFESTS / "smallest.yaml"

    job = load(path)

    assert (job.metadata.name, job.metadata.namespace, job.spec.iterations) == ("smallest", "default", 1)
    assert (job.spec.model.dtype, job.spec.rollout.samples_per_prompt) == (DType.BFLOAT16, 8)
    assert [other["kind"] for other in read(path).others] == ["ConfigMap"]


def test_numbers_are_read_as_kubectl_reads_them() -> None:
    spec = load(MANIFESTS / "random.yaml").spec

    assert (spec.iterations, spec.seed, spec.engine.max_model_len, spec.engine.kv_cache) == (10, 31, 4096, 2**28)
    assert spec.trainer.optimizer.learning_rate == 5e-5
    assert spec.run_policy.suspend is True
    assert spec.data.evaluation is not None
    evaluation = spec.data.evaluation.reasoning_gym
    assert evaluation is not None
    assert (evaluation.task, evaluation.size, evaluation.seed) == ("chain_sum", 200, 7)


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b"a: [1", 1, "is not YAML"),
        (b"spec:\n  a: 1\n b: 2", 3, "is not YAML"),
        (b"a: \xff", None, "not UTF-8"),
        (b"", None, "exactly one RLJob; found 0"),
        (b"[1, 2]", None, "exactly one RLJob; found 0"),
        (b"kind: RLJob\n---\nkind: RLJob", None, "found 2 (lines 1, 3)"),
        (b"kind: ConfigMap\n---\nkind: Secret", None, "found 0"),
    ],
)
def test_a_file_without_one_job_is_refused(content: bytes, line: int | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)

    with pytest.raises(UserError) as caught:
        read(path)

    (problem,) = caught.value.problems
    assert (problem.where, problem.line) == (str(path), line)
    assert says in problem.message


def test_a_missing_file_is_told_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path / "job.yaml")

    assert caught.value.problems == (Problem(str(tmp_path / "job.yaml"), "cannot be read: No such file or directory"),)


def test_a_pattern_that_is_no_regular_expression_is_told(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    text = (MANIFESTS / "smallest.yaml").read_text()
    path.write_text(text.replace("math: {}", 'exact: {pattern: "(a"}'))

    assert [problem.where for problem in problems(read(path))] == ["spec.rewards[0].exact.pattern"]
