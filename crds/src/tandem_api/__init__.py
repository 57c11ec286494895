# SPDX-License-Identifier: Apache-2.0
"""The contract between Tandem and its users, and between Tandem's own processes.

This package knows nothing of the others. It holds the RLJob (``spec``, ``status``), what processes say to each
other (``messages``), where they say it (``keys``, ``environment``) and what can go wrong (``errors``). It imports
neither torch nor Kubernetes nor etcd, so that every process can afford it.
"""

GROUP = "tandem-rl.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "RLJob"
