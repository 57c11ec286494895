# SPDX-License-Identifier: Apache-2.0
"""The rollout half of a hybrid pod: a vLLM engine that takes turns with the trainer."""
