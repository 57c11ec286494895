# SPDX-License-Identifier: Apache-2.0
"""Cures for what breaks Megatron-core 0.19's checkpoints on images without Transformer Engine and Apex.

1. An optimizer that has not stepped yet has no state, and saving it fails an assertion: :func:`give_state`.
2. Saving starts a manager process, which imports ``__main__`` again, for a queue that only one process uses:
   :func:`apply`.
3. Loading a ``fully_reshardable`` optimizer looks for ``step`` among its sharded tensors, where it is not: same.
4. Loading float32 weights copies into a leaf that requires a gradient: same.
5. Loading shares one ``step`` tensor among all parameters, and every update then counts it up once a parameter,
   without any error: :func:`separate_steps`.
6. With expert parallel ranks the optimizer has a part for experts and one for everything else, and loads nothing that
   another number of parts has saved: :func:`load_parts`.
"""

import queue
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

_MOMENTS = ("exp_avg", "exp_avg_sq")


def apply() -> None:
    """Patch Megatron-core, for this process."""
    filesystem_async._results_queue = queue.Queue()
    DistributedOptimizer._set_main_param_and_optimizer_states = _set_main_param_and_optimizer_states


def give_state(optimizer: Any) -> None:
    """Give every parameter the state that Adam would give it at its first step."""
    for part in parts(optimizer):
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                state = part.optimizer.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state |= {moment: torch.zeros_like(parameter) for moment in _MOMENTS}


def separate_steps(optimizer: Any) -> None:
    """Give every parameter a step count of its own."""
    for part in parts(optimizer):
        for state in part.optimizer.state.values():
            if "step" in state:
                state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).detach().clone()


def load_parts(optimizer: Any, loaded: dict[Any, Any], common: Mapping[Any, Any]) -> None:
    """Load what was saved by an optimizer of however many parts.

    ``loaded``: what came for the sharded state of ``optimizer``; ``common``: what was saved beside the tensors. Of that
    only the number of updates is taken, which all parameters share: the rest is the job's spec.
    """
    own = list(parts(optimizer))
    saved = common if "optimizer" in common else common[0]
    first = saved["optimizer"]["param_groups"][0]
    updates = {"step": first["step"]} if "step" in first else {}  # Transformer Engine has none before the first update
    for number, part in enumerate(own):
        state = part.state_dict()
        for group in state["optimizer"]["param_groups"]:
            group |= updates
        tensors = loaded if len(own) == 1 else loaded[number]
        state["param_state"] = tensors["param_state"]
        part.load_state_dict(state | {"param_state_sharding_type": saved["param_state_sharding_type"]})


def parts(optimizer: Any) -> Iterator[Any]:
    """The distributed optimizers that Megatron's optimizer consists of."""
    yield from getattr(optimizer, "chained_optimizers", [optimizer])


@torch.no_grad()
def _set_main_param_and_optimizer_states(
    self: DistributedOptimizer, model_param: torch.Tensor, tensors: dict[str, torch.Tensor]
) -> None:
    group, order = self.model_param_group_index_map[model_param]
    main = self.optimizer.param_groups[group]["params"][order]
    main.copy_(tensors["param"])
    for moment in _MOMENTS:
        self.optimizer.state[main][moment].copy_(tensors[moment])
