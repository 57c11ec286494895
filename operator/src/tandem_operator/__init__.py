# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes operator: RLJob in, hybrid pods out."""
