# SPDX-License-Identifier: Apache-2.0
"""Trainers of two pods under their elastic agents: a rank is killed in a step, or a pod, and the next world goes on."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from api_tls import certificate_alone, secret
from ports import free_port
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from trainer_world import START_SECONDS, TOKEN, Orchestrator, batch, job_spec

from tandem_api.messages.trainer import Load, Offload, TrainerCommand, TrainerReply, TrainStep
from tandem_sidecar.trainer_client import TrainerClient

PODS = 2
pytestmark = pytest.mark.timeout(900)


class PodOfTrainer:
    """One pod's trainer container as the plan starts it, and its sidecar's end of the sockets."""

    def __init__(self, directory: Path, index: int, environment: dict[str, str]) -> None:
        self.directory = directory / f"pod-{index}"
        self.directory.mkdir()
        self.client = TrainerClient(self.directory, 1)
        self.checkpoints = Path(environment["TANDEM_CHECKPOINT_DIR"])
        self._environment = environment | {
            "TANDEM_RUN_DIR": str(self.directory),
            "JOB_COMPLETION_INDEX": str(index),
            "TANDEM_POD_IP": f"127.0.0.{index + 1}",
        }
        self.start()

    def start(self) -> None:
        """The container, for the first time or again."""
        with (self.directory / "log").open("ab") as log:
            self._agent = subprocess.Popen(
                [sys.executable, "-m", "tandem_trainer.launch"],
                env=os.environ | self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_rank(self) -> None:
        """SIGKILL to the rank; its agent lives."""
        children = Path(f"/proc/{self._agent.pid}/task/{self._agent.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL to the agent and all it started."""
        children = Path(f"/proc/{self._agent.pid}/task/{self._agent.pid}/children").read_text().split()
        for pid in (self._agent.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._agent.wait()

    async def keep(self) -> None:
        """Start the container again whenever it has ended, as a kubelet does."""
        while True:
            await asyncio.sleep(0.5)
            if self._agent.poll() is not None:
                self.start()

    def close(self) -> None:
        if self._agent.poll() is None:
            self.kill()


@pytest.fixture(scope="module")
def orchestrator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orchestrator]:
    orchestrator = Orchestrator(tls=secret(tmp_path_factory.mktemp("orchestrator") / "api-tls", "localhost"))
    for iteration in range(4):
        orchestrator.put_batch(iteration, batch(iteration, iteration))
    with orchestrator.serving():
        yield orchestrator


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory, orchestrator: Orchestrator) -> Iterator[list[PodOfTrainer]]:
    directory = tmp_path_factory.mktemp("pods")
    assert orchestrator.tls
    (directory / "secrets").mkdir()
    (directory / "secrets" / "token").write_text(TOKEN)
    spec = job_spec() | {"hybrid": {"replicas": PODS}, "runPolicy": {"maxRestarts": 5}}
    (directory / "job.json").write_text(json.dumps({"namespace": "n", "name": "job", "uid": "1", "spec": spec}))
    environment = {
        "TANDEM_JOB_FILE": str(directory / "job.json"),
        "TANDEM_SECRETS_DIR": str(directory / "secrets"),
        "TANDEM_CHECKPOINT_DIR": str(directory / "checkpoints"),
        "TANDEM_ORCHESTRATOR_URL": orchestrator.url,
        "TANDEM_TLS_DIR": str(certificate_alone(directory / "api-tls", orchestrator.tls)),
        "TANDEM_RENDEZVOUS": f"127.0.0.1:{free_port()}",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    started = [PodOfTrainer(directory, index, environment) for index in range(PODS)]
    try:
        yield started
    finally:
        for pod in started:
            pod.close()
            print((pod.directory / "log").read_text()[-4000:])


async def ask(pods: list[PodOfTrainer], command: TrainerCommand) -> TrainerReply:
    """The command to all pods; the first one's reply."""
    replies = await asyncio.gather(*(pod.client.ask(command, START_SECONDS) for pod in pods))
    return replies[0]


async def recover(pods: list[PodOfTrainer], epoch: int, checkpoint: str | None) -> None:
    """What the sidecars of a new world do: each trainer off the device, then each loads."""
    await asyncio.gather(*(pod.client.let_go(Offload(epoch=epoch), START_SECONDS) for pod in pods))
    await asyncio.gather(*(pod.client.load(Load(epoch=epoch, checkpoint=checkpoint), START_SECONDS) for pod in pods))


def step(epoch: int, iteration: int, save: bool = False) -> TrainStep:
    return TrainStep(epoch=epoch, iteration=iteration, weight_version=iteration, save=save)


async def finish(pods: list[PodOfTrainer], epoch: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train on the two batches after the first: the losses, and what is on disk then."""
    middle, last = await ask(pods, step(epoch, 1)), await ask(pods, step(epoch + 1, 2, save=True))
    assert last.path is not None
    return [reply.measured["loss"] for reply in (middle, last)], tensors(pods[0].checkpoints / last.path)


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whole: float32 weights and the moments of the optimizer."""
    found = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(one.size, dtype=one.properties.dtype)
        for name, one in found.items()
        if isinstance(one, TensorStorageMetadata)
    }
    dcp.load(state, storage_reader=FileSystemReader(checkpoint), no_dist=True)
    return state


async def test_a_world_whose_rank_or_pod_was_killed_in_a_step_ends_with_the_same_weights_bit_for_bit(
    pods: list[PodOfTrainer],
) -> None:
    await recover(pods, 1, None)
    checkpoint = (await ask(pods, step(2, 0, save=True))).path
    losses, undisturbed = await finish(pods, 3)
    assert torch.float32 in {tensor.dtype for name, tensor in undisturbed.items() if "weight" in name}

    kubelets = [asyncio.create_task(pod.keep()) for pod in pods]
    for epoch, kill in ((10, pods[1].kill_rank), (20, pods[1].kill), (30, pods[0].kill)):
        # The other pod's rank is in the step, waiting for one that will not come.
        alone = pods[0] if kill != pods[0].kill else pods[1]
        waiting = asyncio.create_task(alone.client.ask(step(epoch, 3), START_SECONDS))
        await asyncio.wait([waiting], timeout=1.0)
        kill()
        waiting.cancel()
        await asyncio.wait([waiting])
        await recover(pods, epoch + 1, checkpoint)
        again, recovered = await finish(pods, epoch + 2)
        assert again == losses
        assert recovered.keys() == undisturbed.keys()
        assert [name for name, tensor in recovered.items() if not torch.equal(tensor, undisturbed[name])] == []
    for kubelet in kubelets:
        kubelet.cancel()
