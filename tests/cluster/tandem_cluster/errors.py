# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on the way to a ready node, in words for the person who started it."""


class ClusterError(Exception):
    """The cluster cannot be brought up, reached or taken down; the message says why and what to do."""
