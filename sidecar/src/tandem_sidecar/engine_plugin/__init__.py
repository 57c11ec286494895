# SPDX-License-Identifier: Apache-2.0
"""Tandem's weight-transfer backend for vLLM: the code that runs inside the engine's processes.

Nothing of the sidecar imports this package, and this package imports nothing of the sidecar; they meet on vLLM's HTTP
routes. The routes, their bodies, and what a failure looks like are in docs/engine-routes.md. In short, for each
handoff:

1. `POST /init_weight_transfer_engine {"init_info": {"directory": RUN_DIR}}`, once after the engine's start;
2. `POST /start_weight_update`;
3. `POST /update_weights {"update_info": {"version": 5, "timeout": 60.0}}`, answered when all of it is loaded and
checked; 4. `POST /finish_weight_update {"weight_version": "5"}`; 5. `POST /collective_rpc {"method":
"handoff_report"}`, which returns the digest of each worker.
"""

from tandem_sidecar.engine_plugin.shared_memory import name_segments

BACKEND = "tandem"


def register() -> None:
    """Adds the backend to vLLM's registry, and names what the process shares with others. vLLM calls it in each of its
    processes, in some more than once (entry point group `vllm.general_plugins`).
    """
    name_segments()
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "tandem_sidecar.engine_plugin.backend", "TandemWeightTransferEngine"
        )
