# SPDX-License-Identifier: Apache-2.0
"""Weights from one process to another through shared device memory."""
