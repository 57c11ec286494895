# SPDX-License-Identifier: Apache-2.0
"""The trainer, leaving a CPU's memory as it would leave a GPU's; it writes down what it holds after each command."""

import json
from typing import Any

from tandem_api.messages.trainer import TrainerCommand, TrainerReply
from tandem_trainer import __main__ as program

HELD = "held.jsonl"


def held(policy: Any) -> dict[str, int]:
    """Bytes under a policy's weights, gradients and optimizer's moments."""
    from tandem_trainer.megatron_fixes import parts

    buffers = [buffer for chunk in policy.chunks for buffer in chunk.buffers + chunk.expert_parallel_buffers]
    kinds = {
        "weights": [buffer.param_data for buffer in buffers],
        "gradients": [buffer.grad_data for buffer in buffers],
        "moments": [
            moment
            for part in parts(policy.optimizer)
            for state in part.optimizer.state.values()
            for moment in state.values()
        ],
    }
    return {kind: sum(tensor.untyped_storage().nbytes() for tensor in tensors) for kind, tensors in kinds.items()}


def main() -> None:
    from tandem_trainer import trainer
    from tandem_trainer.offload import Offload

    class OffloadingTrainer(trainer.Trainer):
        def _build(self) -> Any:
            policy = super()._build()
            policy._offload = Offload(policy.chunks, policy.optimizer, policy.device)
            return policy

        def obey(self, command: TrainerCommand) -> TrainerReply:
            reply = super().obey(command)
            with (self._places.checkpoint_dir / HELD).open("a") as file:
                file.write(json.dumps({"command": command.command} | held(self._policy)) + "\n")
            return reply

    trainer.Trainer = OffloadingTrainer
    program.main()


if __name__ == "__main__":
    main()
