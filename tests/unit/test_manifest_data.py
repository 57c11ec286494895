# SPDX-License-Identifier: Apache-2.0
"""``tandem validate`` looks at the prompts and the model that a manifest names, where they can be reached."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tandem_api.errors import Problem
from tandem_cli.validate import MOST_LINES, validate

RANDOM = {
    "random": {
        "config": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
        "tokenizer": {"characters": "0123456789+= "},
    }
}


class Job:
    """A manifest in a directory, with the files that it names."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.prompts = self.file("prompts.jsonl", {"id": "a", "domain": "math", "prompt": "1+1="})
        self.spec: dict[str, Any] = {
            "iterations": 1,
            "model": {"source": RANDOM},
            "data": {"prompts": [{"path": str(self.prompts)}]},
            "rewards": [{"name": "math", "math": {}}],
            "algorithm": {"mirrorDescent": {}},
        }

    def file(self, name: str, *lines: object) -> Path:
        path = self.directory / name
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return path

    def problems(self, *others: dict[str, Any]) -> list[Problem]:
        job = {"apiVersion": "tandem-rl.dev/v1alpha1", "kind": "RLJob", "metadata": {"name": "job"}, "spec": self.spec}
        path = self.directory / "job.yaml"
        path.write_text(yaml.safe_dump_all([job, *others], sort_keys=False))
        return validate(path)

    def mount(self, owner: str, container: str, path: str, **volume: Any) -> None:
        mounts = [{"name": "data", "mountPath": path}]
        spec = {"volumes": [{"name": "data", **volume}], "containers": [{"name": container, "volumeMounts": mounts}]}
        self.spec.setdefault(owner, {})["template"] = {"spec": spec}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_job_whose_files_are_right_has_no_problems(job: Job) -> None:
    assert job.problems() == []


def test_a_broken_line_is_told_with_file_and_line(job: Job) -> None:
    job.file("prompts.jsonl", {"id": "a", "domain": "math", "prompt": "1"}, '{"id": "b",')

    (problem,) = job.problems()

    assert problem.where == f"{job.prompts}:2"
    assert "is not JSON" in problem.message


def test_many_broken_lines_are_counted(job: Job) -> None:
    job.file("prompts.jsonl", *["{"] * (MOST_LINES + 5))

    problems = job.problems()

    assert len(problems) == MOST_LINES + 1
    assert (problems[-1].where, problems[-1].message) == ("spec.data.prompts[0].path", "5 more lines are wrong")


def test_broken_lines_may_be_skipped_but_not_all(job: Job) -> None:
    job.spec["data"]["skipInvalid"] = True
    job.file("prompts.jsonl", "{", {"id": "a", "domain": "math", "prompt": "1"})
    assert job.problems() == []

    job.file("prompts.jsonl", "{")
    (problem,) = job.problems()
    assert "holds no records" in problem.message


def test_a_missing_file_is_told_at_its_field(job: Job) -> None:
    job.spec["data"]["evaluation"] = {"path": str(job.directory / "eval.jsonl")}

    (problem,) = job.problems()

    assert problem.where == "spec.data.evaluation.path"
    assert problem.line is not None
    assert "eval.jsonl cannot be read: No such file" in problem.message


def test_a_warm_up_set_without_responses_is_refused(job: Job) -> None:
    job.spec["data"]["warmup"] = {"path": str(job.prompts)}

    (problem,) = job.problems()

    assert problem == Problem(f"{job.prompts}:1", "response is required in a warm-up set")


def test_a_prompt_that_the_made_tokenizer_cannot_spell_is_told(job: Job) -> None:
    job.file("prompts.jsonl", {"id": "a", "domain": "math", "prompt": "what is 1+1="})

    (problem,) = job.problems()

    assert problem.where == f"{job.prompts}: record a"
    assert "'whatis'" in problem.message


def test_an_unknown_task_is_told_with_the_one_that_was_meant(job: Job) -> None:
    job.spec["data"]["prompts"] = [{"reasoningGym": {"task": "chain_sums", "size": 10}}]

    (problem,) = job.problems()

    assert problem.where == "spec.data.prompts[0].reasoningGym.task"
    assert "did you mean chain_sum?" in problem.message


def model_directory(job: Job, *files: str) -> Path:
    directory = job.directory / "model"
    directory.mkdir()
    for name in files:
        (directory / name).write_text("{}")
    return directory


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (("config.json", "tokenizer.json", "model.safetensors"), None),
        (("tokenizer.json", "model.safetensors"), "has no config.json"),
        (("config.json", "model.safetensors"), "has no tokenizer"),
        (("config.json", "tokenizer.json"), "has no weights"),
    ],
)
def test_a_model_directory_must_be_whole(job: Job, files: tuple[str, ...], says: str | None) -> None:
    directory = model_directory(job, *files)
    job.spec["model"]["source"] = {"hf": {"path": str(directory)}}

    problems = job.problems()

    assert [problem.where for problem in problems] == (["spec.model.source.hf.path"] if says else [])
    assert not says or says in problems[0].message


def test_a_missing_model_directory_is_told(job: Job) -> None:
    job.spec["model"]["source"] = {"hf": {"path": "/nowhere/model"}}

    (problem,) = job.problems()

    assert "/nowhere/model is no directory here" in problem.message


def test_a_hub_id_is_left_to_the_libraries(job: Job) -> None:
    job.spec["model"]["source"] = {"hf": {"path": "Qwen/Qwen3-8B"}}

    assert job.problems() == []


def test_a_checkpoint_needs_its_directories(job: Job) -> None:
    directory = model_directory(job, "config.json", "tokenizer.json")
    job.spec["model"]["source"] = {"checkpoint": {"path": "/nowhere/iter-1", "hf": str(directory)}}

    (problem,) = job.problems()

    assert problem.where == "spec.model.source.checkpoint.path"


def test_a_path_in_a_host_volume_is_looked_at_on_this_machine(job: Job) -> None:
    job.spec["data"]["prompts"] = [{"path": "/data/prompts.jsonl"}]
    job.mount("orchestrator", "orchestrator", "/data", hostPath={"path": str(job.directory)})
    assert job.problems() == []

    job.prompts.unlink()
    (problem,) = job.problems()
    assert f"{job.prompts} (/data/prompts.jsonl to the orchestrator) cannot be read" in problem.message


def test_a_path_in_a_claim_is_left_to_the_cluster(job: Job) -> None:
    job.spec["data"]["prompts"] = [{"path": "/data/prompts.jsonl"}]
    job.spec["model"]["source"] = {"hf": {"path": "/models/qwen3"}}
    job.mount("orchestrator", "orchestrator", "/data", persistentVolumeClaim={"claimName": "data"})
    job.mount("hybrid", "trainer", "/models", persistentVolumeClaim={"claimName": "models"})

    assert job.problems() == []


def test_a_path_in_a_config_map_of_the_file_is_looked_at(job: Job) -> None:
    job.spec["data"]["prompts"] = [{"path": "/data/p.jsonl"}]
    job.mount("orchestrator", "orchestrator", "/data", configMap={"name": "prompts"})
    config_map = {"kind": "ConfigMap", "metadata": {"name": "prompts"}, "data": {"p.jsonl": "{}\n"}}

    (problem,) = job.problems(config_map)

    assert problem.where == "ConfigMap prompts, p.jsonl:1"


def test_files_are_looked_at_only_once_the_manifest_is_right(job: Job) -> None:
    job.prompts.unlink()
    job.spec["iterations"] = 0

    assert [problem.where for problem in job.problems()] == ["spec.iterations"]
