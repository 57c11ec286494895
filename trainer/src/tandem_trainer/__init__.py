# SPDX-License-Identifier: Apache-2.0
"""The training half of a hybrid pod: Megatron-core, told what to do by its sidecar."""
