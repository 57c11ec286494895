# SPDX-License-Identifier: Apache-2.0
"""Pod templates as processes: order, restarts, environment, files, names, and the end of everything."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import DEADLINE, reached

from tandem_api.errors import UserError
from tandem_cli.local.kubelet import Kubelet
from tandem_cli.local.manifests import Manifest, Manifests
from tandem_cli.local.network import Subnet
from tandem_cli.local.node import ContainerExit, Node, Scratch
from tandem_cli.local.process import Process

SERVER = """
import http.server, os, sys, time
time.sleep(float(sys.argv[1]))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'up')
    def log_message(self, *_): pass
http.server.HTTPServer((os.environ['IP'], 8081), Handler).serve_forever()
"""
# A daemon as daemons are made: its own session, its parent gone; the container waits until its pid is written.
DAEMON = """
import os, pathlib, time
file = pathlib.Path('{file}')
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        file.with_suffix('.new').write_text(str(os.getpid()))
        file.with_suffix('.new').rename(file)
        time.sleep(300)
    os._exit(0)
while not file.exists():
    time.sleep(0.02)
"""
IP = {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


@contextmanager
def local_node(directory: Path, exits: list[ContainerExit] | None = None, **claims: Path) -> Iterator[Node]:
    with Subnet() as subnet, Scratch() as scratch:
        on_exit: Callable[[ContainerExit], None] = (exits if exits is not None else []).append
        yield Node(subnet, scratch, directory / "logs", directory / "volumes", claims=claims, on_exit=on_exit)


def python(name: str, code: str, *args: str, **content: object) -> Manifest:
    return {"name": name, "command": ["python", "-c", code], "args": list(args), **content}


def shell(name: str, code: str, **content: object) -> Manifest:
    return {"name": name, "command": ["sh", "-c", code], **content}


def job(name: str, *containers: Manifest, inits: tuple[Manifest, ...] = (), **spec: object) -> Manifest:
    pod: Manifest = {
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": 5,
        "initContainers": list(inits),
        "containers": list(containers),
        **spec,
    }
    return {
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"template": {"metadata": {"labels": {"job": name}}, "spec": pod}},
    }


async def run(directory: Path, *objects: Manifest, exits: list[ContainerExit] | None = None) -> dict[str, bool]:
    with local_node(directory, exits) as node:
        async with asyncio.timeout(5 * DEADLINE), Kubelet(node, Manifests(objects)) as kubelet:
            return await kubelet.wait()


def text(directory: Path, pod: str, container: str) -> str:
    return (directory / "logs" / f"{pod}-{container}.log").read_text()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_job_succeeds_when_its_containers_do_and_their_output_is_kept(tmp_path: Path) -> None:
    assert await run(tmp_path, job("j", shell("a", "echo out; echo err >&2"))) == {"j": True}
    assert text(tmp_path, "j", "a") == "out\nerr\n"


async def test_main_containers_start_after_the_sidecars_probe_and_end_before_the_sidecar(tmp_path: Path) -> None:
    ends = f"open('{tmp_path}/order', 'a').write('sidecar ends\\n')"
    sidecar = python(
        "sidecar",
        f"import signal, sys\nsignal.signal(15, lambda *_: ({ends}, sys.exit(0)))\n{SERVER}",
        "0.5",
        env=[IP],
        restartPolicy="Always",
        startupProbe={"httpGet": {"path": "/healthz", "port": 8081}, "periodSeconds": 0.1, "failureThreshold": 2400},
    )
    setup = shell("setup", f"echo setup >> {tmp_path}/order")
    reads = (
        "import os, urllib.request; print(urllib.request.urlopen(f\"http://{os.environ['IP']}:8081/\").read().decode())"
    )
    main = python("main", f"{reads}\nopen('{tmp_path}/order', 'a').write('main\\n')", env=[IP])
    assert await run(tmp_path, job("j", main, inits=(setup, sidecar))) == {"j": True}
    assert text(tmp_path, "j", "main") == "up\n"
    assert (tmp_path / "order").read_text().splitlines() == ["setup", "main", "sidecar ends"]


async def test_a_container_whose_startup_probe_fails_is_killed_and_started_again(tmp_path: Path) -> None:
    code = f"echo start >> {tmp_path}/starts; test $(wc -l < {tmp_path}/starts) -ge 2 && touch {tmp_path}/up; sleep 60"
    sidecar = shell(
        "sidecar",
        code,
        restartPolicy="Always",
        startupProbe={
            "exec": {"command": ["test", "-e", f"{tmp_path}/up"]},
            "periodSeconds": 0.1,
            "failureThreshold": 10,
        },
    )
    assert await run(tmp_path, job("j", shell("main", "true"), inits=(sidecar,))) == {"j": True}
    # A loaded machine may kill the second start as well, before it is seen to be up.
    assert len((tmp_path / "starts").read_text().splitlines()) >= 2


async def test_a_failing_container_restarts_beside_the_others_and_is_counted(tmp_path: Path) -> None:
    exits: list[ContainerExit] = []
    flaky = shell("flaky", f"echo x >> {tmp_path}/n; test $(wc -l < {tmp_path}/n) -ge 3 && touch {tmp_path}/done")
    steady = shell("steady", f"echo once >> {tmp_path}/s; while ! test -e {tmp_path}/done; do sleep 0.05; done")
    assert await run(tmp_path, job("j", flaky, steady), exits=exits) == {"j": True}
    assert [(e.status, e.restarts, e.restarting) for e in exits if e.container == "flaky"] == [
        (1, 1, True),
        (1, 2, True),
        (0, 2, False),
    ]
    assert (tmp_path / "s").read_text() == "once\n"


async def test_a_pod_that_never_restarts_is_replaced_up_to_the_jobs_backoff_limit(tmp_path: Path) -> None:
    manifest = job("j", shell("a", f"echo x >> {tmp_path}/n; exit 3"), restartPolicy="Never")
    manifest["spec"]["backoffLimit"] = 2
    assert await run(tmp_path, manifest) == {"j": False}
    assert (tmp_path / "n").read_text() == "x\n" * 3


async def test_exit_status_of_a_signal_is_128_plus_its_number(tmp_path: Path) -> None:
    exits: list[ContainerExit] = []
    manifest = job("j", shell("a", "kill -9 $$$$"), restartPolicy="Never")
    manifest["spec"]["backoffLimit"] = 0
    await run(tmp_path, manifest, exits=exits)
    assert [e.status for e in exits] == [137]


async def test_a_command_that_is_not_there_fails_with_its_name_in_the_log(tmp_path: Path) -> None:
    exits: list[ContainerExit] = []
    manifest = job("j", {"name": "a", "command": ["no-such-program"]}, restartPolicy="Never")
    manifest["spec"]["backoffLimit"] = 0
    await run(tmp_path, manifest, exits=exits)
    assert exits[0].status == 127
    assert "no-such-program" in text(tmp_path, "j", "a")


async def test_indexed_pods_have_their_index_address_and_names(tmp_path: Path) -> None:
    show = (
        "import os, json; print(json.dumps([os.environ[n] for n in ('JOB_COMPLETION_INDEX', 'IP', 'NAME', 'PEER')]"
        " + [os.environ['URL']]))"
    )
    env = [
        IP,
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "PEER", "value": "j-0.j-peers:29400"},
        {"name": "URL", "value": "http://server.default.svc:8080/x"},
    ]
    indexed = job("j", python("a", show, env=env), subdomain="j-peers")
    indexed["spec"] |= {"completionMode": "Indexed", "completions": 2, "parallelism": 2}
    server = job("server", shell("a", "true"))
    service = {
        "kind": "Service",
        "metadata": {"name": "server"},
        "spec": {"selector": {"job": "server"}, "ports": [{"port": 8080}]},
    }
    assert await run(tmp_path, indexed, server, service) == {"j-0": True, "j-1": True, "server": True}
    first, second = (json.loads(text(tmp_path, f"j-{i}", "a")) for i in (0, 1))
    assert [first[0], second[0]] == ["0", "1"]
    assert [first[2], second[2]] == ["j-0", "j-1"]
    assert first[1] != second[1]
    assert first[3] == second[3] == f"{first[1]}:29400"
    assert first[4].startswith("http://127.")
    assert first[4] not in (f"http://{first[1]}:8080/x", f"http://{second[1]}:8080/x")


async def test_volumes_are_shared_kept_across_restarts_and_filled_from_config_maps_and_secrets(tmp_path: Path) -> None:
    objects = [
        {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"job.json": '{"path": "/data/in.txt"}'}},
        {"kind": "Secret", "metadata": {"name": "s"}, "stringData": {"token": "hush"}},
    ]
    volumes = [
        {"name": "shared", "emptyDir": {"medium": "Memory"}},
        {"name": "config", "configMap": {"name": "c"}},
        {"name": "secret", "secret": {"secretName": "s"}},
        {"name": "claim", "persistentVolumeClaim": {"claimName": "data"}},
    ]
    mounts = [
        {"name": "shared", "mountPath": "/run/shared"},
        {"name": "config", "mountPath": "/etc/job"},
        {"name": "secret", "mountPath": "/var/run/secrets/x"},
        {"name": "claim", "mountPath": "/data", "subPath": "sub"},
    ]
    writer = shell(
        "writer", "cat /var/run/secrets/x/token > /run/shared/t; echo hello > /data/in.txt", volumeMounts=mounts
    )
    reader = python(
        "reader",
        "import json, sys; print(open(json.load(open(sys.argv[1]))['path']).read(), open(sys.argv[2]).read())",
        "/etc/job/job.json",
        "/run/shared/t",
        volumeMounts=mounts,
    )
    manifest = job("j", reader, inits=(writer,), volumes=volumes)
    assert await run(tmp_path, manifest, *objects) == {"j": True}
    assert text(tmp_path, "j", "reader") == "hello\n hush\n"
    assert (tmp_path / "volumes" / "data" / "sub" / "in.txt").read_text() == "hello\n"


async def test_stopping_sends_sigterm_to_main_containers_then_to_sidecars_and_insists_after_the_grace_period(
    tmp_path: Path,
) -> None:
    trap = f"trap 'echo $0 >> {tmp_path}/order; exit 0' TERM; touch {tmp_path}/$0.up; while true; do sleep 0.05; done"
    sidecar = {"name": "sidecar", "command": ["sh", "-c", trap, "sidecar"], "restartPolicy": "Always"}
    main = {"name": "main", "command": ["sh", "-c", trap, "main"]}
    deaf = shell("deaf", f"trap '' TERM; touch {tmp_path}/deaf.up; while true; do sleep 0.05; done")
    exits: list[ContainerExit] = []
    with local_node(tmp_path, exits) as node:
        manifest = job("j", main, deaf, inits=(sidecar,), terminationGracePeriodSeconds=4)
        async with Kubelet(node, Manifests([manifest])) as kubelet:
            up = [tmp_path / f"{name}.up" for name in ("sidecar", "main", "deaf")]
            await reached(lambda: all(path.exists() for path in up), DEADLINE, "the containers' start")
            began = time.monotonic()
            await kubelet.stop()
            took = time.monotonic() - began
    assert (tmp_path / "order").read_text() == "main\nsidecar\n"
    assert {e.container: e.status for e in exits} == {"main": 0, "deaf": 137, "sidecar": 0}
    assert 3.9 < took < DEADLINE


async def test_what_a_container_left_behind_is_gone_when_it_has_ended(tmp_path: Path) -> None:
    await run(tmp_path, job("j", python("a", f"{DAEMON.format(file=tmp_path / 'stray')}")))
    stray = int((tmp_path / "stray").read_text())
    assert not alive(stray)


@pytest.mark.parametrize("end", [Process.terminate, Process.kill])
async def test_a_process_ends_that_is_asked_to_before_its_supervisor_listens(
    tmp_path: Path, end: Callable[[Process], None]
) -> None:
    python = tmp_path / "python"
    # As a shell does that starts a command in the background.
    python.write_text(f"#!/bin/sh\ntrap '' INT QUIT\nexec {sys.executable} \"$@\"\n")
    python.chmod(0o755)
    with local_node(tmp_path) as node:
        node = replace(node, python=str(python))
        process = await Process.start(node, ["sleep", "300"], {}, tmp_path, node.logs / "sleep.log")
        end(process)
        async with asyncio.timeout(DEADLINE):
            assert await process.wait() in (128 + signal.SIGTERM, 128 + signal.SIGKILL)


@pytest.mark.parametrize(
    ("container", "spec", "message"),
    [
        ({"name": "a"}, {}, "has no command"),
        ({"name": "a", "command": ["true"], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}, {}, "no volume v"),
        (
            {"name": "a", "command": ["true"], "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
            {"volumes": [{"name": "v", "nfs": {}}]},
            "no volumes of kind nfs",
        ),
        (
            {
                "name": "a",
                "command": ["true"],
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
            },
            {},
            "Secret s",
        ),
        ({"name": "a", "command": ["true"], "startupProbe": {"httpGet": {"port": "web"}}}, {}, "no port named web"),
    ],
)
async def test_what_cannot_run_is_refused_before_anything_starts(
    tmp_path: Path, container: Manifest, spec: Manifest, message: str
) -> None:
    with local_node(tmp_path) as node, pytest.raises(UserError, match=message):
        Kubelet(node, Manifests([job("j", container, **spec)]))
    assert not (tmp_path / "logs").exists()


async def test_giving_up_the_wait_leaves_the_pods_running(tmp_path: Path) -> None:
    code = f"trap 'echo asked > {tmp_path}/end; exit 0' TERM; touch {tmp_path}/up; while true; do sleep 0.05; done"
    with local_node(tmp_path) as node:
        async with Kubelet(node, Manifests([job("j", shell("a", code))])) as kubelet:
            await reached((tmp_path / "up").exists, DEADLINE, "the container's start")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(kubelet.wait(), 0.1)
            await kubelet.stop()
            assert await kubelet.wait() == {"j": True}
    assert (tmp_path / "end").read_text() == "asked\n"
