# SPDX-License-Identifier: Apache-2.0
"""The etcd protocol: keys, fenced transactions, leadership, membership and barriers."""
