# SPDX-License-Identifier: Apache-2.0
"""Whatever kills whoever started the pods, nothing of them is left."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import processes_of
from waiting import DEADLINE, until

# Starts a pod with a sidecar and a main container; each leaves a grandchild in a session of its own.
STARTER = """
import asyncio, sys
from pathlib import Path
from tandem_cli.local.kubelet import Kubelet
from tandem_cli.local.manifests import Manifests
from tandem_cli.local.network import Subnet
from tandem_cli.local.node import Node, Scratch

directory = Path(sys.argv[1])
CODE = '''
import os, pathlib, sys, time, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for kind in ("child", "grandchild"):
    if os.fork() == 0:
        os.setsid()
        pathlib.Path(sys.argv[1] + "." + kind + ".new").write_text(str(os.getpid()))
        os.rename(sys.argv[1] + "." + kind + ".new", sys.argv[1] + "." + kind)
        if kind == "grandchild":
            time.sleep(300)
    else:
        time.sleep(300)
'''
containers = [
    {"name": name, "command": ["python", "-c", CODE, str(directory / name)]} for name in ("engine", "trainer")
]
containers[0]["restartPolicy"] = "Always"
pod = {"initContainers": containers[:1], "containers": containers[1:], "restartPolicy": "OnFailure"}
job = {"kind": "Job", "metadata": {"name": "j"}, "spec": {"template": {"spec": pod}}}

async def main():
    with Subnet() as subnet, Scratch() as scratch:
        (directory / "scratch").write_text(f"{scratch.memory}\\n{scratch.disk}")
        node = Node(subnet, scratch, directory / "logs", directory / "volumes")
        async with Kubelet(node, Manifests([job])) as kubelet:
            await kubelet.wait()

asyncio.run(main())
"""
MARKS = [f"{container}.{kind}" for container in ("engine", "trainer") for kind in ("child", "grandchild")]


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has started the pod; the pod is up with all its descendants."""
    process = subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)], start_new_session=True)
    try:
        until(
            lambda: all((tmp_path / mark).exists() for mark in MARKS),
            DEADLINE,
            "the pod's start with all its descendants",
        )
        yield process
    finally:
        process.kill()
        process.wait()


def test_sigkill_of_the_starter_leaves_no_process_and_no_directory(
    starter: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    pids = [int((tmp_path / mark).read_text()) for mark in MARKS]
    assert set(pids) <= set(processes_of(tmp_path))
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    until(lambda: not processes_of(tmp_path), DEADLINE, "the end of all processes")
    directories = [Path(line) for line in (tmp_path / "scratch").read_text().splitlines()]
    until(lambda: not any(directory.exists() for directory in directories), DEADLINE, "the end of the directories")


def test_sigkill_of_a_containers_supervisor_takes_the_container_with_it(
    starter: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    pids = [int((tmp_path / f"trainer.{kind}").read_text()) for kind in ("child", "grandchild")]
    supervisors = [
        pid
        for pid in processes_of(tmp_path)
        if b"supervisor.py" in (cmdline := Path(f"/proc/{pid}/cmdline").read_bytes()) and b"/trainer" in cmdline
    ]
    assert len(supervisors) == 1
    os.kill(supervisors[0], signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), DEADLINE, "the end of the container")
