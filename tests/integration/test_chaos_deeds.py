# SPDX-License-Identifier: Apache-2.0
"""What a fault does to a disk, and that it is undone; in a mount namespace, where a disk of its own costs nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import DEADLINE, until

from tandem_cli.chaos.deeds import check_own_file_system
from tandem_cli.chaos.program import program
from tandem_cli.chaos.targets import Refused

SIZE = 4 * 2**20


class Deed:
    """A deed in a mount namespace whose ``directory`` is a file system of 4 MiB with a file on it."""

    def __init__(self, directory: Path) -> None:
        order = {"deed": "FillDisk", "component": "orchestrator", "directory": str(directory), "seconds": 300.0}
        script = f"mount -t tmpfs -o size={SIZE} tmpfs {directory} && echo data > {directory}/file && echo mounted"
        command = [sys.executable, "-I", "-S", "-c", program("deeds", "targets", "interception"), json.dumps(order)]
        self._process = subprocess.Popen(
            [
                "unshare",
                "--user",
                "--map-root-user",
                "--mount",
                "sh",
                "-c",
                f'{script} && "$@"; exec sleep 300',
                "sh",
                *command,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"mounted\n"
        self.inside = Path(f"/proc/{self._process.pid}/root{directory}")

    def said(self, name: str) -> None:
        assert self._process.stdout is not None
        assert name in json.loads(self._process.stdout.readline())

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout):
            if file is not None:
                file.close()

    def free(self) -> int:
        found = os.statvfs(self.inside)
        return found.f_bavail * found.f_frsize


@pytest.fixture
def deed(tmp_path: Path) -> Iterator[Deed]:
    deed = Deed(tmp_path)
    yield deed
    deed.close()


def test_a_full_disk_has_no_byte_left_and_all_of_them_afterwards(deed: Deed) -> None:
    deed.said("armed")
    before = deed.free()
    assert before > SIZE / 2
    deed.go()
    deed.said("struck")
    assert deed.free() == 0
    (deed.inside / "file").unlink()
    until(lambda: deed.free() == 0, DEADLINE, "what becomes free to be taken as well")
    deed.end()
    deed.said("over")
    assert deed.free() >= before
    assert list(deed.inside.iterdir()) == []


def test_a_disk_that_others_use_is_not_filled(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="so that others' disk would be full as well"):
        check_own_file_system(tmp_path)
