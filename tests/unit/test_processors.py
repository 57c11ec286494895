# SPDX-License-Identifier: Apache-2.0
"""Workers are as many as the processors that the container may use, not as its node has."""

import os
from pathlib import Path

import pytest

from tandem_orchestrator.processors import usable_processors

ALL = frozenset(range(64))


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: ALL)


def usable(directory: Path, cgroup: str, quotas: dict[str, str]) -> int:
    """``quotas``: the content of cpu.max by cgroup, for a process in ``cgroup``."""
    membership, root = directory / "membership", directory / "root"
    membership.write_text(f"1:name=systemd:/elsewhere\n0::{cgroup}\n")
    for path, text in quotas.items():
        (root / path).mkdir(parents=True, exist_ok=True)
        (root / path / "cpu.max").write_text(text + "\n")
    return usable_processors(membership, root)


@pytest.mark.parametrize(
    ("cgroup", "quotas", "expected"),
    [
        ("/", {"": "400000 100000"}, 4),
        ("/", {"": "max 100000"}, 64),
        ("/", {"": "250000 100000"}, 3),
        ("/", {"": "20000 100000"}, 1),
        ("/", {"": "10000000 100000"}, 64),
        ("/", {}, 64),
        ("/kubepods/pod", {"kubepods": "max 100000", "kubepods/pod": "200000 100000"}, 2),
        ("/kubepods/pod/container", {"kubepods/pod": "200000 100000", "kubepods/pod/container": "max 100000"}, 2),
        ("/a/b", {"a": "300000 100000", "a/b": "500000 100000"}, 3),
    ],
)
def test_the_smallest_quota_above_a_process_counts(
    tmp_path: Path, cgroup: str, quotas: dict[str, str], expected: int
) -> None:
    assert usable(tmp_path, cgroup, quotas) == expected


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_processors(tmp_path / "missing", tmp_path) == len(ALL)
