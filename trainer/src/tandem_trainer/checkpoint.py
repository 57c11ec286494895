# SPDX-License-Identifier: Apache-2.0
"""Training state on disk: Megatron's distributed checkpoints, each of which appears whole or not at all.

Nothing in an iteration draws from a running random number generator (all orders come from the seed and the
iteration), so weights, optimizer and counters are the whole state.
"""

import hashlib
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from torch.distributed.checkpoint.api import CheckpointException
from transformers import PretrainedConfig

from tandem_trainer import megatron_fixes
from tandem_trainer.policy import Policy

LATEST = "latest"
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_DECISIVE = ("model_type", "vocab_size", "tie_word_embeddings", "rope_parameters", *_SIZES)
_MOST_REASON = 1000
_NAME = re.compile(r"iter-(\d{7,})")


class CheckpointUnreadable(RuntimeError):
    """The checkpoint is not there, not whole, or of another model."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What a checkpoint says of itself: ``iteration`` iterations are done, and the weights are ``weight_version``."""

    iteration: int
    weight_version: int


class Checkpoints:
    """The checkpoints of a job below ``directory``, which all ranks share: ``iter-0000012/`` and so on, and the file
    ``latest`` with the name of the newest. All methods are collective.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, iteration: int) -> Path:
        return self._directory / f"iter-{iteration:07d}"

    def save(self, policy: Policy, counters: Counters, keep: int) -> Path:
        """Write a checkpoint, in place of an older one of the same iteration; the ``keep`` newest stay."""
        path = self.path(counters.iteration)
        unfinished = path.with_name(f".{path.name}.unfinished")
        if dist.get_rank() == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        dist.barrier()
        megatron_fixes.apply()
        state = _sharded_state(policy, loading=False) | {
            "counters": asdict(counters),
            "model": _fingerprint(policy.hf_config),
        }
        # Every rank checks that it stored its own part; what all ranks should agree on is a few numbers.
        dist_checkpointing.save(state, str(unfinished), validate_access_integrity=False, async_strategy="mcore")
        if dist.get_rank() == 0:
            self._publish(unfinished, path, keep)
        dist.barrier()
        return path

    def load(self, policy: Policy, path: Path) -> Counters:
        """Read a checkpoint into the policy, whatever the layout that wrote it.

        Raises:
            CheckpointUnreadable: it is missing, damaged, or of another model. The policy is undefined then.
        """
        path = self._directory / path
        if not (path / "metadata.json").exists():
            raise CheckpointUnreadable(f"{path}: is no checkpoint; it holds no metadata.json")
        saved = dist_checkpointing.load_common_state_dict(str(path))
        fingerprint = _fingerprint(policy.hf_config)
        if saved.get("model") != fingerprint:
            raise CheckpointUnreadable(
                f"{path}: belongs to another model (fingerprint {saved.get('model')}, this model has {fingerprint}); "
                "give the config.json that it was trained with"
            )
        megatron_fixes.apply()
        try:
            state = dist_checkpointing.load(_sharded_state(policy, loading=True), str(path))
        except CheckpointException as error:
            # Not a subclass of Exception: nothing else would report it. It may list every tensor of the model.
            raise CheckpointUnreadable(f"{path}: cannot be read: {shorten(str(error), _MOST_REASON)}") from None
        policy.module.load_state_dict(state["model_weights"], strict=False)
        megatron_fixes.load_parts(policy.optimizer, state["optimizer"], saved["optimizer"])
        megatron_fixes.separate_steps(policy.optimizer)
        return Counters(**saved["counters"])

    def _publish(self, unfinished: Path, path: Path, keep: int) -> None:
        replaced = path.with_name(f".{path.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if path.exists():
            path.rename(replaced)
        unfinished.rename(path)
        pointer = self._directory / f".{LATEST}"
        pointer.write_text(path.name)
        pointer.rename(self._directory / LATEST)
        shutil.rmtree(replaced, ignore_errors=True)
        for old in self._all()[:-keep]:
            if old != path:
                shutil.rmtree(old)

    def _all(self) -> list[Path]:
        return sorted(entry for entry in self._directory.iterdir() if _NAME.fullmatch(entry.name))


def _sharded_state(policy: Policy, *, loading: bool) -> dict[str, Any]:
    metadata = {
        # The one format that loads into any tensor, pipeline, expert and data parallel layout.
        "distrib_optim_sharding_type": "fully_reshardable",
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }
    weights = policy.module.sharded_state_dict(metadata=metadata)
    optimizer = policy.optimizer.sharded_state_dict(weights, is_loading=loading, metadata=metadata)
    megatron_fixes.separate_steps(policy.optimizer)
    return {"model_weights": weights, "optimizer": optimizer}


def _fingerprint(hf_config: PretrainedConfig) -> str:
    """Tells models apart by what decides their weights' shapes and meaning."""
    text = repr([(name, getattr(hf_config, name, None)) for name in _DECISIVE])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
