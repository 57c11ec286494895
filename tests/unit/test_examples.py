# SPDX-License-Identifier: Apache-2.0
"""The examples are valid, and their layouts are what they say."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pytest
from operator_fixture import platform

from tandem_api.environment import Secrets
from tandem_api.manifest import Manifest, load_manifest, read
from tandem_api.rljob import RLJobObject
from tandem_cli.validate import validate
from tandem_operator.plan import plan

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@dataclass(frozen=True)
class Layout:
    """Pods, devices of each, data-parallel copies of the policy, and devices that a pod's engine uses."""

    pods: int
    devices: int
    copies: int
    engine: int


LAYOUTS = {
    "chain-sum": Layout(pods=1, devices=0, copies=1, engine=1),
    "code-7b": Layout(pods=2, devices=4, copies=2, engine=4),
    "custom-reward": Layout(pods=1, devices=0, copies=1, engine=1),
    "long-context-32b": Layout(pods=8, devices=8, copies=2, engine=8),
    "math-8b": Layout(pods=1, devices=8, copies=2, engine=8),
}


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.stem)
def manifest(request: pytest.FixtureRequest) -> Manifest:
    return read(request.param)


@pytest.fixture
def job(manifest: Manifest) -> RLJobObject:
    return load_manifest(manifest)


@pytest.fixture
def objects(job: RLJobObject) -> dict[str, dict[str, Any]]:
    planned = plan(job, platform(pod_level_resources=True), Secrets("token"))
    return {f"{found['kind']} {found['metadata']['name']}": found for found in planned}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_no_problems_and_bears_its_files_name(path: Path) -> None:
    assert validate(path) == []
    assert read(path).metadata["name"] == path.stem


def test_the_documentation_explains_the_example(job: RLJobObject) -> None:
    assert f"examples/{job.metadata.name}.yaml" in (ROOT / "docs" / "examples.md").read_text()


def test_pods_and_ranks_are_as_many_as_the_example_says(job: RLJobObject, objects: dict[str, dict[str, Any]]) -> None:
    layout, sizes = LAYOUTS[job.metadata.name], job.spec.trainer.parallelism
    hybrid = objects[f"Job {job.metadata.name}-hybrid"]["spec"]
    claim = objects.get(f"ResourceClaimTemplate {job.metadata.name}-accelerators")

    assert hybrid["completions"] == hybrid["parallelism"] == layout.pods
    assert (claim["spec"]["spec"]["devices"]["requests"][0]["exactly"]["count"] if claim else 0) == layout.devices
    assert job.spec.world == layout.copies * sizes.tensor * sizes.pipeline * sizes.context
    assert job.spec.engine.tensor_parallel == layout.engine


def test_no_device_idles_while_the_engine_rolls_out(job: RLJobObject) -> None:
    assert job.spec.engine.tensor_parallel == job.spec.ranks_per_pod


def test_a_sample_of_the_greatest_length_fits_into_a_microbatch(job: RLJobObject) -> None:
    assert job.spec.engine.max_model_len <= job.spec.trainer.micro_batch_tokens


def mounts(pod: dict[str, Any], container: str) -> list[PurePosixPath]:
    spec = pod["spec"]["template"]["spec"]
    (found,) = (one for one in (*spec.get("initContainers", ()), *spec["containers"]) if one["name"] == container)
    volumes = {volume["name"] for volume in spec["volumes"]}
    assert all(mount["name"] in volumes for mount in found["volumeMounts"])
    return [PurePosixPath(mount["mountPath"]) for mount in found["volumeMounts"]]


def test_every_container_that_reads_the_model_or_the_prompts_mounts_them(
    job: RLJobObject, objects: dict[str, dict[str, Any]]
) -> None:
    name, data = job.metadata.name, job.spec.data
    hybrid, master = objects[f"Job {name}-hybrid"], objects[f"Job {name}-orchestrator"]
    model = job.spec.model.source.hf
    read_by = {
        "engine": (hybrid, [model and model.path]),
        "trainer": (hybrid, [model and model.path]),
        "orchestrator": (
            master,
            [
                model and model.path,
                *(source.path for source in (*data.prompts, data.warmup, data.evaluation) if source),
            ],
        ),
    }
    for container, (pod, paths) in read_by.items():
        for path in filter(None, paths):
            covered = any(PurePosixPath(path).is_relative_to(mount) for mount in mounts(pod, container))
            assert covered, f"{container} does not see {path}"


def test_the_reward_of_ones_own_lies_where_python_looks_for_it(tmp_path: Path) -> None:
    written = read(ROOT / "examples" / "custom-reward.yaml")
    job = load_manifest(written)
    planned = plan(job, platform(), Secrets("token"))
    (master,) = (
        found
        for found in planned
        if found["metadata"]["name"] == "custom-reward-orchestrator" and found["kind"] == "Job"
    )
    spec = master["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    (path,) = (variable["value"] for variable in container["env"] if variable["name"] == "PYTHONPATH")
    (mount,) = (mount for mount in container["volumeMounts"] if mount["mountPath"] == path)
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == mount["name"])
    (config,) = (other for other in written.others if other["metadata"]["name"] == volume["configMap"]["name"])
    reward = job.spec.rewards[0].python

    assert reward is not None
    module, _, name = reward.callable.partition(":")
    loaded = ModuleType(module)
    exec(config["data"][f"{module}.py"], loaded.__dict__)
    score = getattr(loaded, name)
    assert score({"answer": "5"}, "4 + 1 =5") == 1.0
    assert score({"answer": "5"}, "=4") == pytest.approx(0.2)
    assert score({"answer": "5"}, "five") == 0.0
