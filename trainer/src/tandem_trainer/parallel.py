# SPDX-License-Identifier: Apache-2.0
"""Process groups of the ranks that torchrun started."""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state

from tandem_api.errors import Problem, UserError
from tandem_api.spec.hybrid import Parallelism
from tandem_trainer.device import Device
from tandem_trainer.rendezvous import meeting_point


class CollectiveFailed(RuntimeError):
    """Some rank could not do its part of something collective; every rank raises this, with all their reasons."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the world is cut: ``tensor * pipeline * context * data`` ranks. Experts are dealt out over ``expert`` of the
    ranks that a pipeline stage has, each whole.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    context: int = 1
    expert: int = 1

    @property
    def world(self) -> int:
        return self.tensor * self.pipeline * self.context * self.data

    @classmethod
    def of(cls, sizes: Parallelism, world: int) -> "Layout":
        """How ``world`` ranks are cut into these sizes; what is left over is data parallel.

        Raises:
            UserError: they do not divide the number of ranks.
        """
        stage, left = divmod(world, sizes.pipeline)
        if left or stage % (sizes.tensor * sizes.context):
            message = (
                f"tensor {sizes.tensor} x pipeline {sizes.pipeline} x context {sizes.context} does not divide "
                f"the {world} ranks of the job"
            )
            raise UserError(Problem("spec.trainer.parallelism", message))
        if stage % sizes.expert:
            message = f"{sizes.expert} does not divide the {stage} ranks of a pipeline stage"
            raise UserError(Problem("spec.trainer.parallelism.expert", message))
        data = stage // (sizes.tensor * sizes.context)
        return cls(sizes.tensor, sizes.pipeline, data, sizes.context, sizes.expert)


def join(
    device: Device, sizes: Parallelism, seed: int, timeout: timedelta, meeting: socket.socket | None = None
) -> Layout:
    """Join the world that torchrun's environment names and cut it into groups; what is left over is data parallel.

    ``meeting``: rank 0's :func:`.rendezvous.meeting_point`, if it has taken it; it is given away here.

    Joining again is nothing. A collective that takes longer than ``timeout`` fails; ranks that come before rank 0 wait
    for it without end, or until their sidecar ends them.

    Raises:
        UserError: these sizes do not divide the number of ranks, or cannot be served.
    """
    layout = Layout.of(sizes, int(os.environ["WORLD_SIZE"]))
    if dist.is_initialized():
        return layout
    store = _store(timeout, meeting or meeting_point())
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(device.backend, timeout=timeout, store=store, rank=rank, world_size=world)
    divide(layout, timeout)
    if device.accelerated:
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

        model_parallel_cuda_manual_seed(seed)
    return layout


def _store(timeout: timedelta, listener: socket.socket | None) -> dist.TCPStore:
    """What torch makes of torchrun's environment, on a socket that listens already."""
    if listener is None:
        place: dict[str, Any] = {"port": int(os.environ["MASTER_PORT"])}
    else:
        place = {"port": listener.getsockname()[1], "is_master": True, "master_listen_fd": listener.detach()}
    return dist.TCPStore(
        os.environ["MASTER_ADDR"], world_size=int(os.environ["WORLD_SIZE"]), timeout=timeout, multi_tenant=True, **place
    )


def divide(layout: Layout, timeout: timedelta) -> None:
    """Cut the world into the groups of a layout."""
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=1,
        create_gloo_process_groups=False,
        distributed_timeout_minutes=max(1, int(timeout.total_seconds() // 60)),
    )


def leave() -> None:
    """Leave the world, if this rank is in one."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def agree(error: str | None, same: str) -> None:
    """Go on only if no rank has an error and all hold the ``same``. Collective over the world.

    Raises:
        CollectiveFailed: on every rank, if any rank brought an ``error``, or something else than the others.
    """
    said: list[tuple[str | None, str]] = [(None, "")] * dist.get_world_size()
    dist.all_gather_object(said, (error, same))
    failed = [f"rank {rank}: {reason}" for rank, (reason, _) in enumerate(said) if reason]
    if failed:
        raise CollectiveFailed("; ".join(failed))
    if len({held for _, held in said}) > 1:
        raise CollectiveFailed(f"the ranks hold different data: {', '.join(held for _, held in said)}")


def from_last_stage(value: Any) -> Any:
    """``value`` as the last pipeline stage has it, on all stages."""
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return value
    box = [value]
    group = parallel_state.get_pipeline_model_parallel_group()
    dist.broadcast_object_list(box, src=parallel_state.get_pipeline_model_parallel_last_rank(), group=group)
    return box[0]
