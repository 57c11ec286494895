# SPDX-License-Identifier: Apache-2.0
"""What a trainer rank does on each command of its sidecar. All of it is collective over the world's ranks."""

import hashlib
import os
import socket
import ssl
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import perf_counter

import structlog
import torch
from transformers import AutoConfig, PretrainedConfig

from tandem_api.environment import Job
from tandem_api.hub import hugging_face_directory
from tandem_api.messages.trainer import (
    Checkpoint,
    Export,
    FinishRun,
    Load,
    Offload,
    TrainerCommand,
    TrainerReply,
    TrainStep,
    Warmup,
)
from tandem_api.model_source import model_directory
from tandem_handoff import Exporter, Verify, drain
from tandem_trainer import parallel
from tandem_trainer.batch import Batch, MalformedBatch
from tandem_trainer.checkpoint import Checkpoints, Counters
from tandem_trainer.device import Device
from tandem_trainer.fetch import FetchFailed, fetch
from tandem_trainer.policy import Policy
from tandem_trainer.server import CommandRefused
from tandem_trainer.step import IterationResult, IterationSettings, train_iteration
from tandem_trainer.warmup import warm_up
from tandem_trainer.weights import SeededWeights, export_hugging_face

log = structlog.get_logger()

_BYTES_PER_TOKEN = 4 + 1 + 4 + 4
_BYTES_PER_SAMPLE = 8 + 4 + 4 + 4
_HEADER_BYTES = 1 << 20
_MOST_WARMUP_BYTES = 8 << 30
_LONGEST_FETCH = 300.0
_SPARE = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Places:
    """Where a trainer rank finds and leaves things.

    ``context`` says which orchestrator to believe, where its API is served over TLS (tandem_api.tls).
    """

    run_dir: Path
    checkpoint_dir: Path
    orchestrator_url: str
    token: str
    context: ssl.SSLContext | None = None


class Trainer:
    """One rank's state between commands.

    Life cycle: ``load`` builds the policy (once) and fills it; ``warmup`` and ``step`` change it; ``export`` shows it
    to the engine and leaves the device, as ``offload`` does, and the next command takes it again; ``checkpoint`` and
    ``finish`` write it. After a command that was done the device holds the weights at most, since an engine takes
    memory for its own before it asks for them.
    ``_counters`` say how many iterations the weights have seen, ``_saved`` which state is on disk already.
    """

    def __init__(self, job: Job, places: Places, device: Device, meeting: socket.socket | None) -> None:
        self._job = job
        self._spec = job.spec
        self._places = places
        self._device = device
        self._meeting = meeting
        self._local_rank = int(os.environ["LOCAL_RANK"])
        self._model_directory = model_directory(self._spec.model, places.run_dir / f"trainer-{self._local_rank}")
        self._checkpoints = Checkpoints(places.checkpoint_dir)
        self._exporter = self._make_exporter()
        self._policy: Policy | None = None
        self._loaded = False
        self._counters = Counters(0, 0)
        self._saved: Counters | None = None

    def obey(self, command: TrainerCommand) -> TrainerReply:
        """Carry out a command."""
        reply = self._carry_out(command)
        if self._policy is not None:
            self._policy.offload(weights=False)
        return reply

    def _carry_out(self, command: TrainerCommand) -> TrainerReply:
        match command:
            case Offload():
                return self._offload()
            case Load():
                return self._load(command)
            case Warmup():
                return self._warm_up(command)
            case TrainStep():
                return self._step(command)
            case Export():
                return self._export(command)
            case Checkpoint():
                return self._checkpoint(command)
            case FinishRun():
                return self._finish(command)

    def close(self) -> None:
        """Stop serving weights, and leave the other ranks."""
        if self._exporter:
            self._exporter.close()
        parallel.leave()

    def _offload(self) -> TrainerReply:
        if self._policy is not None:
            self._policy.offload(weights=True)
        return TrainerReply()

    def _load(self, command: Load) -> TrainerReply:
        started = perf_counter()
        self._loaded = False
        policy = self._policy = self._policy or self._build()
        policy.onload()
        built = perf_counter()
        source = self._spec.model.source
        self._counters, self._saved = Counters(0, 0), None
        if command.checkpoint:
            self._counters = self._saved = self._checkpoints.load(policy, Path(command.checkpoint))
        elif source.random:
            policy.load(SeededWeights(policy.hf_config, self._spec.seed))
        elif source.checkpoint:
            self._checkpoints.load(policy, Path(source.checkpoint.path))
            policy.reset_optimizer()
        elif source.hf:
            policy.load(hugging_face_directory(source.hf, weights=True))
        self._loaded = True
        log.info("weights are loaded", checkpoint=command.checkpoint, iteration=self._counters.iteration)
        return TrainerReply(
            seconds={"build": built - started, "load": perf_counter() - built},
            measured={"parameters": float(policy.parameter_count())},
        )

    def _warm_up(self, command: Warmup) -> TrainerReply:
        settings = self._spec.data.warmup
        if settings is None:
            raise CommandRefused("spec.data.warmup is absent, but the sidecar asked for a warm-up")
        policy = self._ready()
        started = perf_counter()
        rows = self._fetch("warmup", _MOST_WARMUP_BYTES, None)
        fetched = perf_counter()
        result = warm_up(policy, rows, settings, self._spec.trainer.micro_batch_tokens, self._spec.seed)
        self._counters = Counters(0, self._counters.weight_version)
        self._saved = None
        return self._report(result, fetched - started, save=command.save)

    def _step(self, command: TrainStep) -> TrainerReply:
        policy = self._ready()
        self._require_iterations(command.iteration)
        started = perf_counter()
        most = self._spec.samples_per_iteration * (
            self._spec.engine.max_model_len * _BYTES_PER_TOKEN + _BYTES_PER_SAMPLE
        )
        batch = self._fetch(f"batches/{command.iteration}", most + _HEADER_BYTES, command.iteration)
        fetched = perf_counter()
        iterations = command.iterations or self._spec.iterations
        settings = IterationSettings(self._spec.algorithm, self._spec.trainer, iterations, self._spec.seed)
        result = train_iteration(policy, batch, settings, command.iteration, command.weight_version)
        self._counters = Counters(command.iteration + 1, command.weight_version + 1)
        log.info("the policy is updated", iteration=command.iteration, loss=result.measured["loss"])
        return self._report(result, fetched - started, save=command.save)

    def _report(self, result: IterationResult, fetch_seconds: float, *, save: bool) -> TrainerReply:
        seconds = {"data": fetch_seconds, **result.seconds}
        path = None
        if save:
            started = perf_counter()
            path = self._save()
            seconds["checkpoint"] = perf_counter() - started
        return TrainerReply(measured=result.measured, seconds=seconds, path=path)

    def _export(self, command: Export) -> TrainerReply:
        policy = self._ready(for_training=False)
        policy.begin_offload()
        probed = policy.log_probs(command.probe) if command.probe else ()
        started = perf_counter()
        reply = self._serve_weights(policy, command)
        seconds = {"export": perf_counter() - started}
        policy.offload(weights=True)
        return reply.model_copy(update={"probe_logprobs": probed, "seconds": seconds})

    def _serve_weights(self, policy: Policy, command: Export) -> TrainerReply:
        if self._exporter is None:
            drain(policy.full_weights())
            return TrainerReply()
        manifest = self._exporter.export(command.weight_version, policy.full_weights(), command.timeout)
        return TrainerReply(
            digest=manifest.digest, measured={"bytes": float(manifest.nbytes), "tensors": float(manifest.tensors)}
        )

    def _checkpoint(self, command: Checkpoint) -> TrainerReply:
        self._require_iterations(command.iteration)
        started = perf_counter()
        return TrainerReply(path=self._save(), seconds={"checkpoint": perf_counter() - started})

    def _finish(self, command: FinishRun) -> TrainerReply:
        if not command.export:
            return TrainerReply()
        policy = self._ready(for_training=False)
        started = perf_counter()
        directory = self._places.checkpoint_dir / "hf"
        export_hugging_face(policy.full_weights(), policy.hf_config, self._model_directory, directory)
        return TrainerReply(path=str(directory), seconds={"export": perf_counter() - started})

    def _require_iterations(self, done: int) -> None:
        if done != self._counters.iteration:
            raise CommandRefused(
                f"the command is for weights after {done} iterations, but this rank holds those after "
                f"{self._counters.iteration}; load a checkpoint of iteration {done} first"
            )

    def _save(self) -> str:
        policy = self._ready()
        if self._saved == self._counters:
            return str(self._checkpoints.path(self._counters.iteration))
        path = self._checkpoints.save(policy, self._counters, self._job.refreshed().spec.checkpoint.keep)
        self._saved = self._counters
        log.info("a checkpoint is saved", iteration=self._counters.iteration, path=str(path))
        return str(path)

    def _ready(self, *, for_training: bool = True) -> Policy:
        if self._policy is None or not self._loaded:
            raise CommandRefused("no weights are loaded; send the command load first")
        self._policy.onload(training=for_training)
        return self._policy

    def _fetch(self, what: str, most_bytes: int, iteration: int | None) -> Batch:
        """The same batch on every rank, or the same error."""
        batch: Batch | None = None
        digest, error = "", None
        try:
            body = fetch(
                f"{self._places.orchestrator_url}/v1/{what}",
                self._places.token,
                most_bytes,
                min(_LONGEST_FETCH, self._spec.schedule.phase_deadlines.train),
                self._places.context,
            )
            digest = hashlib.blake2b(body, digest_size=16).hexdigest()
            batch = Batch.parse(body, iteration)
        except (FetchFailed, MalformedBatch) as problem:
            error = str(problem)
        parallel.agree(error, same=digest)
        assert batch is not None
        return batch

    def _build(self) -> Policy:
        """Join the other ranks and make the policy; what is wrong with the job's spec is found here."""
        spec = self._spec.trainer
        timeout = timedelta(seconds=self._spec.schedule.phase_deadlines.train) + _SPARE
        return Policy(
            self._hf_config(),
            getattr(torch, self._spec.model.dtype.value),
            parallel.join(self._device, spec.parallelism, self._spec.seed, timeout, self._meeting),
            self._device,
            spec.optimizer,
            self._spec.rollout.temperature,
            spec.recompute,
        )

    def _hf_config(self) -> PretrainedConfig:
        return AutoConfig.from_pretrained(str(self._model_directory))

    def _make_exporter(self) -> Exporter | None:
        """Ranks without an engine worker of the same number only take part in the gather."""
        if self._local_rank >= self._spec.engine.tensor_parallel:
            return None
        return Exporter(
            self._places.run_dir / f"handoff-{self._local_rank}.sock",
            self._spec.handoff.bucket,
            self._device.torch_device,
            Verify(self._spec.handoff.verify.value),
        )
