# SPDX-License-Identifier: Apache-2.0
"""``tandem buffer``: what the replay buffer of a run holds.

Only the orchestrator reads its storage: a process of its package does the reading, this one shows what it said.
"""
