# SPDX-License-Identifier: Apache-2.0
"""``tandem run`` with scripted hybrid pods: the real command line, kubelet, etcd and orchestrator, and real processes
that can be killed, but neither vLLM nor Megatron. ``python scripted_run.py FILE OUT`` is how it is started."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from orchestrator_world import make_job, prompt_file
from waiting import until

from tandem_api import API_VERSION, KIND
from tandem_cli.chaos.local import holder_of
from tandem_cli.run.directory import RunDirectory

PROGRAMS = Path(__file__).parent / "scripted_programs.py"
SOON = 240.0
# Containers are started as `python -m MODULE`; supervisors and the orchestrator are what they always are.
_INTERPRETER = """#!/bin/sh
case "$2" in
  tandem_sidecar|tandem_trainer.launch) exec {python} {programs} "$@" ;;
  *) exec {python} "$@" ;;
esac
"""


def manifest(directory: Path, spec: Mapping[str, Any]) -> Path:
    """The file of a small job, ``spec`` laid over it."""
    job = make_job(prompt_file(directory), **spec)
    spec = job.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    file = directory / "job.yaml"
    file.write_text(
        yaml.safe_dump({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "scripted"}, "spec": spec})
    )
    return file


@contextmanager
def scripted_run(directory: Path, out: Path, **spec: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A run that has begun in ``out``; ended when the context is left."""
    interpreter = directory / "python"
    interpreter.write_text(_INTERPRETER.format(python=sys.executable, programs=PROGRAMS))
    interpreter.chmod(0o755)
    command = [sys.executable, __file__, str(interpreter), str(manifest(directory, spec)), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(PROGRAMS.parent)}
    with (directory / "run.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        until(lambda: process.poll() is not None or holder_of(RunDirectory(out)), SOON, "the begin of the run")
        assert process.poll() is None, (directory / "run.log").read_text()
        yield process
    finally:
        process.kill()
        process.wait()


def main(interpreter: str, file: str, out: str) -> None:
    sys.executable = interpreter
    from tandem_cli.main import run

    sys.argv = ["tandem", "run", file, "--out", out]
    run()


if __name__ == "__main__":
    main(*sys.argv[1:])
