# SPDX-License-Identifier: Apache-2.0
"""The etcd protocol by which a job's processes take turns (phases.md).

``store`` is the only module that knows the etcd client. ``mirror`` keeps a local copy of a prefix; ``leadership``,
``membership`` and ``phase`` write, each write fenced by what its writer believes; ``transitions`` decides what comes
next as a function of data. This package knows the contract (``tandem_api``) and nothing else of Tandem.
"""
