# SPDX-License-Identifier: Apache-2.0
"""Times as Kubernetes writes them and as the policies reckon with them."""

from datetime import UTC, datetime


def unix(timestamp: str | None) -> float:
    """An RFC 3339 time in Unix seconds; 0 for none."""
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0


def rfc3339(now: float) -> str:
    """Unix seconds as metav1.Time: UTC, whole seconds."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_micro(now: float) -> str:
    """Unix seconds as metav1.MicroTime, which Leases use."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
