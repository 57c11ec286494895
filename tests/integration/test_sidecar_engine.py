# SPDX-License-Identifier: Apache-2.0
"""The sidecar's engine process: nothing of vLLM is left when it has ended, by whatever end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SERVER = """
import os, signal, subprocess, sys
from multiprocessing import resource_tracker, shared_memory
from tandem_sidecar.engine_plugin.shared_memory import name_segments
signal.signal(signal.SIGTERM, signal.SIG_IGN)
name_segments()
memory = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(memory._name, "shared_memory")  # which is killed with vLLM as often as not
print("memory", memory.name, flush=True)
if sys.argv[1] == "core":
    worker = subprocess.Popen(["sleep", "600"])
    print("processes", os.getppid(), os.getpid(), worker.pid, flush=True)
    signal.pause()
core = subprocess.Popen([sys.executable, __file__, "core"])
core.wait()
"""
"""Stands in for vLLM's: it starts a core that starts a worker, and ignores being asked to end."""

SIDECAR = """
import asyncio, sys
from pathlib import Path
from orchestrator_world import make_job
from prometheus_client import CollectorRegistry
from tandem_api.errors import MemberFailed
from tandem_sidecar.engine import Engine
from tandem_sidecar.metrics import MemberMetrics
from tandem_sidecar.processes import adopt_orphans

async def main(directory):
    engine = Engine(make_job(directory / "prompts"), directory, directory, MemberMetrics(CollectorRegistry()))
    try:
        await engine.start(600.0)
    except MemberFailed as error:
        print("failed", error, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await engine.close()

adopt_orphans()
asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("victim", ["server", "core"])
def test_nothing_is_left_of_vllm_when_one_of_its_processes_was_killed(victim: str, tmp_path: Path) -> None:
    package = tmp_path
    for name in ("vllm", "entrypoints", "openai"):
        package /= name
        package.mkdir()
        (package / "__init__.py").touch()
    (package / "api_server.py").write_text(SERVER)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])}
    command = [sys.executable, "-c", SIDECAR, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as sidecar:  # type: ignore[call-overload]
        memory = [Path("/dev/shm", line_of(sidecar, "memory ").strip()) for _ in ("server", "core")]
        server, core, worker = map(int, line_of(sidecar, "processes").split())
        assert [segment.stat().st_size for segment in memory] == [4096, 4096]
        os.kill(server if victim == "server" else core, signal.SIGKILL)
        assert "while it started" in line_of(sidecar, "failed")
        # Neither runs on nor is a zombie: the sidecar, which lives, has waited for each.
        left = [pid for pid in (server, core, worker) if Path(f"/proc/{pid}").exists()]
        left += [segment for segment in memory if segment.exists()]
        sidecar.communicate("end\n")
    assert left == []
    assert sidecar.returncode == 0


def line_of(process: "subprocess.Popen[str]", name: str) -> str:
    assert process.stdout is not None
    return next(line.removeprefix(name) for line in process.stdout if line.startswith(name))
