# SPDX-License-Identifier: Apache-2.0
"""The RLJob contract: specification, status, messages between processes and errors."""
