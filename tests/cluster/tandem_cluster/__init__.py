# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes for the tests, made of processes of this machine. ../README.md says how to use it."""
