# SPDX-License-Identifier: Apache-2.0
"""The trainer container's command: becomes torchrun with this pod's place in the job."""

import os
import sys

from tandem_api import environment as names
from tandem_api.environment import Environment

_NO_SHARED_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Ranks that are started anew would share the store of those before them and connect to the dead (pytorch#135712)."""

_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
"""Else torch gives back whole segments only: a tensor that stays would keep the engine from all that lay beside it."""


def torchrun_arguments(env: Environment, extra: list[str]) -> list[str]:
    """torchrun's command line for this pod; ``extra`` options of torchrun come last and win.

    The elastic agent restarts dead ranks in place (c10d rendezvous hosted by pod 0), so a failure of a rank costs no
    container restart.
    """
    job = env.job()
    pods = job.spec.hybrid.replicas
    index = env.number(names.COMPLETION_INDEX)
    rendezvous = (
        ["--standalone"]
        if pods == 1
        else [
            *("--rdzv-backend", "c10d", "--rdzv-id", job.uid, "--rdzv-endpoint", env.text(names.RENDEZVOUS)),
            *("--rdzv-conf", f"is_host={int(index == 0)},join_timeout={int(job.spec.schedule.phase_deadlines.start)}"),
            *("--local-addr", env.text(names.POD_IP)),
        ]
    )
    return [
        *("--nnodes", str(pods), "--nproc-per-node", str(job.spec.ranks_per_pod)),
        *("--max-restarts", str(job.spec.run_policy.max_restarts)),
        *rendezvous,
        *extra,
        *("-m", "tandem_trainer"),
    ]


def main() -> None:
    os.environ[_NO_SHARED_STORE] = "1"
    os.environ.setdefault(_ALLOCATOR, "expandable_segments:True")
    command = [sys.executable, "-m", "torch.distributed.run", *torchrun_arguments(Environment(), sys.argv[1:])]
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
