# SPDX-License-Identifier: Apache-2.0
"""How responses are scored: one module a kind, ``scoring`` chooses among them, ``workers`` runs what may hang."""
