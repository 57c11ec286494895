# SPDX-License-Identifier: Apache-2.0
"""The central master: prompts, replay buffer, rewards and phase decisions."""
