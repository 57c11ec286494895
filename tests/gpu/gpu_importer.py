# SPDX-License-Identifier: Apache-2.0
"""An engine's end on a GPU, in PID and IPC namespaces of its own, as in the other container of a pod.

Run as a program with a socket and a device. It reads commands from standard input, one JSON object a line
({"version": 1, "die_in": null}), and answers each with a line.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READY = "ready"


class GpuImporter:
    """The process, from the test's side."""

    def __init__(self, process: "subprocess.Popen[str]", hello: dict[str, Any]) -> None:
        self._process = process
        self.hello = hello

    def tell(self, version: int, die_in: int | None = None) -> None:
        """Receive a version, and end without a word in a bucket if told so."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"version": version, "die_in": die_in}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Digest, checksums by name and seconds of the last version, or {"error": ...}."""
        return _line(self._process)

    def ended(self) -> None:
        """Waits for the end of a process that was told to die."""
        self._process.wait(60)


@contextmanager
def gpu_importer(socket_path: Path, device: str, **environment: str) -> Iterator[GpuImporter]:
    """Starts the process; it has a CUDA context when this returns."""
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(root / "handoff" / "src"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, __file__, str(socket_path), device],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths} | environment,
    )
    try:
        yield GpuImporter(process, _line(process))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def _line(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the importing process ended with {process.wait(20)}"
    answer: dict[str, Any] = json.loads(line)
    return answer


def enter_namespaces() -> str:
    """New PID and IPC namespaces for the children of this process; in what way, or why not."""
    wanted = os.CLONE_NEWPID | os.CLONE_NEWIPC
    for way, flags in (("as root", wanted), ("through a user namespace", wanted | os.CLONE_NEWUSER)):
        try:
            os.unshare(flags)
            return way
        except PermissionError:
            continue
    return "refused"


def _serve(socket_path: str, device_name: str, way: str) -> None:
    import torch

    from tandem_handoff import HandoffError, Importer
    from tandem_handoff.checksums import checksum

    device = torch.device(device_name)
    torch.zeros(1, device=device)
    importer = Importer(socket_path, device)
    namespaces = {name: str(Path(f"/proc/self/ns/{name}").readlink()) for name in ("pid", "ipc")}
    print(json.dumps({"state": READY, "namespaces": namespaces, "way": way, "pid": os.getpid()}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        sums: dict[str, int] = {}
        try:
            for index, tensors in enumerate(importer.receive(command["version"], 60.0)):
                if index == command["die_in"]:
                    os._exit(9)
                if command["version"] == 1:  # later ones are timed
                    sums |= {name: checksum(tensor) for name, tensor in tensors}
        except HandoffError as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
            continue
        assert importer.manifest is not None
        print(json.dumps({"digest": importer.manifest.digest, "sums": sums}), flush=True)
    importer.close()


if __name__ == "__main__":
    entered = enter_namespaces()
    child = os.fork()  # the first process of the new PID namespace
    if child == 0:
        _serve(sys.argv[1], sys.argv[2], entered)
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
