# SPDX-License-Identifier: Apache-2.0
"""``tandem run``: one RLJob on this machine.

The operator's own decisions (``tandem_operator.policy``) are carried out on the local kubelet: what a cluster does
about a job, local mode does too.
"""
