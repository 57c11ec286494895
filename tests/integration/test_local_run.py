# SPDX-License-Identifier: Apache-2.0
"""``tandem run`` with the plan's own pod templates and a real etcd; the programs in the pods are small scripts.

They do what the real ones do as the command line sees it: move the phase, report progress, save when suspended.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from running import processes_of
from waiting import until

ORCHESTRATOR = """
import asyncio, http.server, json, os, pathlib, sys, threading, time
from tandem_api.environment import Environment
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import *
from tandem_phases.store import Store

class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass

env = Environment()
threading.Thread(
    target=http.server.HTTPServer((env.text("TANDEM_POD_IP"), 8080), Health).serve_forever, daemon=True).start()
job = env.job()
state = env.path("TANDEM_STATE_DIR")
keys = JobKeys(job.namespace, job.name, job.uid)
counter = state / "iteration"
done = int(counter.read_text()) if counter.exists() else 0
script = os.environ.get("SCRIPT", "succeed")

async def main():
    epoch = 0
    async with Store(env.etcd_endpoints()) as store:
        async def enter(name, reason=None):
            nonlocal epoch
            epoch += 1
            record = PhaseRecord(epoch=epoch, iteration=done, name=name, weight_version=done, world=1, members=(0,),
                                 started=time.time(), reason=reason)
            await store.put(keys.phase, record.wire())
        async def wanted():
            entry = await store.get(keys.desired)
            return Desired.model_validate_json(entry.value).state if entry else DesiredState.RUNNING
        if script == "wrong":
            print("prompts.jsonl:17 is broken")
            sys.exit(2)
        await enter(PhaseName.START)
        if script == "fail":
            print(json.dumps({"event": "the disk is full", "level": "error", "bytes": 17}))
            await enter(PhaseName.FAILED, "the disk is full")
            await asyncio.Event().wait()
        globals()["done"] = done
        iteration = done
        while iteration < job.spec.iterations:
            await enter(PhaseName.ROLLOUT)
            while script == "deaf" or script == "slow" and await wanted() is not DesiredState.SUSPENDED:
                await asyncio.sleep(0.05)
            if await wanted() is DesiredState.SUSPENDED:
                await enter(PhaseName.SUSPENDED)
                counter.write_text(str(iteration))
                ack = Ack(epoch=epoch, index=0, incarnation="a", outcome=Outcome.DONE, seconds=0.5)
                await store.put(keys.ack(epoch, 0), ack.wire())
                await asyncio.Event().wait()
            iteration += 1
            globals()["done"] = iteration
            row = {"iteration": iteration, "weightVersion": iteration, "phaseSeconds": {"Rollout": 3.0, "Handoff": 1.0},
                   "switchSteps": {"release": 0.2}, "rewardMean": 0.5, "evalAccuracy": 0.25 * iteration, "tokens": 100,
                   "tokensPerSecond": 50.0, "seconds": 4.0}
            with (state / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\\n")
            progress = Progress(iteration=iteration, iterations=job.spec.iterations, reward=0.5,
                                eval_accuracy=0.25 * iteration, tokens_per_second=50.0)
            await store.put(keys.progress, progress.wire())
            await enter(PhaseName.HANDOFF)
            await asyncio.sleep(0.2)
        await enter(PhaseName.SUCCEEDED)
        (pathlib.Path(state) / "finished").touch()

asyncio.run(main())
"""
SIDECAR = """
import http.server, os
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer((os.environ["TANDEM_POD_IP"], 8081), Health).serve_forever()
"""
TRAINER = """
import os, pathlib, sys, time
if os.environ.get("SCRIPT") == "crash":
    sys.exit("no such model")
checkpoints = pathlib.Path(os.environ["TANDEM_CHECKPOINT_DIR"])
(checkpoints / "trainer.pid").write_text(str(os.getpid()))
while not (checkpoints.parent / "finished").exists():
    time.sleep(0.05)
"""
JOB = {
    "apiVersion": "tandem-rl.dev/v1alpha1",
    "kind": "RLJob",
    "metadata": {"name": "small"},
    "spec": {
        "iterations": 3,
        "model": {
            "source": {
                "random": {
                    "config": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
                    "tokenizer": {"characters": "0123456789+= "},
                }
            }
        },
        "data": {"prompts": [{"reasoningGym": {"task": "chain_sum", "size": 10}}]},
        "algorithm": {"mirrorDescent": {"tau": 0.1}},
        "rewards": [{"name": "gym", "domains": ["*"], "reasoningGym": {}}],
    },
}
LONG = 240.0
"""Seconds in which a run of some seconds ends on the most loaded machine."""
TANDEM = Path(sys.executable).with_name("tandem")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A job whose pods run the scripts above; the variable SCRIPT says how they behave."""
    for package, module, code in (
        ("tandem_orchestrator", "__main__", ORCHESTRATOR),
        ("tandem_sidecar", "__main__", SIDECAR),
        ("tandem_trainer", "launch", TRAINER),
    ):
        folder = tmp_path / "programs" / package
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / f"{module}.py").write_text(code)
    env = [{"name": "PYTHONPATH", "value": str(tmp_path / "programs")}]
    spec = {**JOB["spec"], **{part: {"env": env} for part in ("orchestrator", "engine", "trainer")}}  # type: ignore[dict-item]
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({**JOB, "spec": spec}))
    return file


@contextmanager
def tandem(*arguments: str | Path, script: str = "succeed") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [str(TANDEM), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SCRIPT": script},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def run(*arguments: str | Path, script: str = "succeed") -> subprocess.CompletedProcess[str]:
    with tandem(*arguments, script=script) as process:
        out, err = process.communicate(timeout=LONG)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def status(out: Path) -> dict[str, object]:
    return json.loads((out / "status.json").read_text()) if (out / "status.json").exists() else {}


def until_rollout(out: Path) -> None:
    until(lambda: status(out).get("phase") == "Rollout", LONG, "the first rollout")


def test_a_run_that_succeeds_leaves_status_report_and_summary_and_no_process(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("run", manifest, "--out", out)
    assert result.returncode == 0, result.stdout + result.stderr
    assert status(out)["phase"] == "Succeeded"
    assert status(out)["iteration"] == 3
    assert "25.0 % → 75.0 %" in result.stdout
    assert "iteration 3/3" in result.stdout
    assert str(out / "report.html") in result.stdout
    assert (out / "report.html").exists()
    assert processes_of(tmp_path) == []


def test_a_secret_of_the_manifest_can_be_read_by_nobody_else_in_the_runs_directory(
    manifest: Path, tmp_path: Path
) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "judge"}, "stringData": {"key": "hush-hush"}}
    manifest.write_text(f"{manifest.read_text()}---\n{yaml.safe_dump(secret)}")
    out = tmp_path / "out"
    assert run("run", manifest, "--out", out).returncode == 0
    holders = [path for path in out.rglob("*") if path.is_file() and b"hush-hush" in path.read_bytes()]
    assert [(path.name, oct(path.stat().st_mode & 0o077)) for path in holders] == [("job.yaml", "0o0")]


def test_a_directory_that_holds_a_run_is_refused_with_the_way_out(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "job.yaml").write_text(manifest.read_text())
    before = sorted(tmp_path.rglob("*"))
    result = run("run", manifest, "--out", out)
    assert result.returncode == 2
    assert "--resume" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_that_cannot_be_made_is_refused_in_a_sentence(manifest: Path) -> None:
    result = run("run", manifest, "--out", manifest / "out")
    assert result.returncode == 2
    assert result.stderr == f"{manifest / 'out'}: cannot hold a run: Not a directory; choose another --out\n"


def test_a_wrong_manifest_starts_nothing(manifest: Path, tmp_path: Path) -> None:
    text = manifest.read_text().replace("iterations: 3", "iterations: 0")
    manifest.write_text(text)
    result = run("run", manifest, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "spec.iterations (line" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_failed_run_says_why_and_shows_the_end_of_the_log(manifest: Path, tmp_path: Path) -> None:
    result = run("run", manifest, "--out", tmp_path / "out", script="fail")
    assert result.returncode == 1
    assert "the disk is full (bytes=17)" in result.stdout
    assert status(tmp_path / "out")["phase"] == "Failed"
    assert processes_of(tmp_path) == []


def test_a_container_that_fails_at_every_start_ends_the_run_with_its_log(manifest: Path, tmp_path: Path) -> None:
    result = run("run", manifest, "--out", tmp_path / "out", script="crash")
    assert result.returncode == 1
    assert "container trainer of pod small-hybrid-0 failed 5 times in a row" in result.stdout
    assert "no such model" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_then_stops_and_resume_goes_on_as_the_same_job(
    manifest: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    with tandem("run", manifest, "--out", out, script="slow") as process:
        until_rollout(out)
        uid = yaml.safe_load((out / "job.yaml").read_text())["metadata"]["uid"]
        process.send_signal(number)
        stdout, _ = process.communicate(timeout=LONG)
    assert process.returncode == 130
    assert f"--out {out} --resume" in stdout
    assert (out / "iteration").read_text() == "0"
    assert status(out)["phase"] == "Suspended"
    assert processes_of(tmp_path) == []
    result = run("run", manifest, "--out", out, "--resume")
    assert result.returncode == 0, result.stdout + result.stderr
    assert yaml.safe_load((out / "job.yaml").read_text())["metadata"]["uid"] == uid


def test_a_program_that_calls_the_data_wrong_is_not_started_again(manifest: Path, tmp_path: Path) -> None:
    result = run("run", manifest, "--out", tmp_path / "out", script="wrong")
    assert result.returncode == 2
    assert "prompts.jsonl:17 is broken" in result.stdout
    assert result.stdout.count("ended with status 2") == 1


def test_a_second_interrupt_stops_at_once(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with tandem("run", manifest, "--out", out, script="deaf") as process:
        until_rollout(out)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        stdout, _ = process.communicate(timeout=LONG)
    assert process.returncode == 130
    assert "Nothing had to be saved yet" in stdout
    assert status(out)["phase"] == "Rollout"
    assert processes_of(tmp_path) == []


def test_sigkill_leaves_no_process_and_the_run_can_be_resumed(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with tandem("run", manifest, "--out", out, script="slow") as process:
        until_rollout(out)
        until((out / "checkpoints" / "trainer.pid").exists, LONG, "the trainer's start")
        assert len(processes_of(tmp_path)) > 5
        process.kill()
        process.communicate()
    until(lambda: processes_of(tmp_path) == [], LONG, "the end of all processes")
    result = run("run", manifest, "--out", out, "--resume")
    assert result.returncode == 0, result.stdout + result.stderr


def test_two_runs_in_one_directory_are_refused(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with tandem("run", manifest, "--out", out, script="slow") as process:
        until_rollout(out)
        result = run("run", manifest, "--out", out, "--resume")
        assert result.returncode == 2
        assert "in use by another tandem run" in result.stderr
        assert process.poll() is None


def test_resuming_with_another_setting_names_the_field(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("run", manifest, "--out", out).returncode == 0
    manifest.write_text(manifest.read_text().replace("tau: 0.1", "tau: 0.2").replace("iterations: 3", "iterations: 4"))
    result = run("run", manifest, "--out", out, "--resume")
    assert result.returncode == 2
    assert "spec.algorithm.mirrorDescent.tau (line" in result.stderr
    assert "iterations" not in result.stderr
