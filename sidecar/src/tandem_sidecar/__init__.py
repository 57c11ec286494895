# SPDX-License-Identifier: Apache-2.0
"""The rollout half of a hybrid pod: a vLLM engine that takes turns with the trainer beside it.

``main`` puts it together. ``worker`` follows the job's phase and acks; ``switch`` is the engine's and the trainer's
part of each phase; ``rollouts`` turns leases into segments; ``engine`` supervises the vLLM process and
``engine_client`` speaks to it; ``trainer_client`` commands the ranks; ``work_client`` speaks to the orchestrator.
``engine_plugin`` runs inside vLLM and is the only part that may import torch.
"""
