# SPDX-License-Identifier: Apache-2.0
"""What can go wrong between the user and the cluster, as sentences that say what to do."""

from tandem_api.errors import TandemError


class ClusterError(TandemError):
    """The cluster was not asked, or said no. Exit status 2."""


class Missing(ClusterError):
    """The API server has no such object, or no such kind."""


class Forbidden(ClusterError):
    """The user lacks a right; the message names verb and resource."""
