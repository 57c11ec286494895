# SPDX-License-Identifier: Apache-2.0
"""How many processors this process may keep busy: a container sees all of its node's, and may use a share of them."""

import os
from pathlib import Path

_SELF = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def usable_processors(membership: Path = _SELF, root: Path = _ROOT) -> int:
    """Processors of this process's affinity, or fewer if a CPU quota (cgroup v2) allows no more; at least 1.

    ``membership`` is the file that names the process's cgroup, ``root`` where the hierarchy is mounted.
    """
    quota = _quota(membership, root)
    found = len(os.sched_getaffinity(0))
    # A part of a processor is used rather than wasted.
    return found if quota is None else max(1, min(found, -int(-quota // 1)))


def _quota(membership: Path, root: Path) -> float | None:
    """The smallest quota, in processors, of the process's cgroup and those above it; None without any.

    In a container with a cgroup namespace of its own, ``root`` is the container's cgroup already.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    path = next((line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")), "")
    own = root / path
    above = [directory for directory in own.parents if directory.is_relative_to(root)]
    return min((quota for directory in (own, *above) if (quota := _of(directory)) is not None), default=None)


def _of(directory: Path) -> float | None:
    """What ``cpu.max`` of a cgroup allows: "quota period" in microseconds, or "max period"."""
    try:
        quota, period = (directory / "cpu.max").read_text().split()
    except OSError:
        return None  # The root cgroup has no such file, nor has cgroup v1.
    return None if quota == "max" else int(quota) / int(period)
