# SPDX-License-Identifier: Apache-2.0
"""``kubectl tandem``: jobs on a cluster, seen and steered with the rights of whoever calls it.

``connection`` speaks HTTP with the API server, ``objects`` knows which objects make up a job; a command has a module,
which decides and renders in pure functions. Start-up is part of the interface: nothing here imports the operator's
plan or the client library's generated classes, which take longer than most answers.
"""
