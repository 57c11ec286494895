# SPDX-License-Identifier: Apache-2.0
"""The plugin through kubectl, on a real cluster.

Two worlds: a namespace with an operator, whose job cannot start, for what the plugin says and wants of a job; and one
with the pods of a job as the operator plans them, in which stand-ins for its processes write logs, metrics and figures
in the format of the real ones.
"""

import asyncio
import json
import re
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from etcd_server import etcd_server
from kubectl import ENVIRONMENT, KUBECONFIG, ROOT, kubectl, one
from operator_fixture import manifest, platform
from operator_process import OperatorProcess
from waiting import eventually, until

from tandem_api.environment import Secrets
from tandem_api.keys import JobKeys
from tandem_api.messages.phases import Desired, PhaseName, PhaseRecord, Progress
from tandem_api.utilisation import attribute, utilisation
from tandem_operator import jobs
from tandem_operator.plan import plan
from tandem_phases.store import Store

TIMELINE = ROOT / "tests" / "timelines" / "two-pods.jsonl"
METRICS = [{"iteration": 0, "rewardMean": 0.5, "evalAccuracy": 0.25, "seconds": 4.0, "phaseSeconds": {"train": 4.0}}]
IMAGE = "ghcr.io/tandem-rl/orchestrator:0.1.0"

ORCHESTRATOR = """
import json, os, threading
from pathlib import Path
import structlog
from tandem_api import logs, metrics
from tandem_api.exposition import counter, registry, served
from tandem_api.utilisation import attribute
logs.configure(process="orchestrator", pod=os.environ["TANDEM_POD_NAME"])
state, timeline = Path(os.environ["TANDEM_STATE_DIR"]), os.environ["TIMELINE"]
(state / "timeline.jsonl").write_text(timeline)
(state / "metrics.jsonl").write_text(os.environ["METRICS"])
collected = registry()
seconds = counter(metrics.ACCELERATOR_SECONDS, collected)
for member, uses in attribute(map(json.loads, timeline.splitlines()), 2).items():
    for use, value in uses.items():
        seconds.labels(member, use).inc(value)
with served(os.environ["TANDEM_POD_IP"], collected):
    log, number = structlog.get_logger(), 0
    log.info("phase", name="Rollout", iteration=3)
    while True:
        threading.Event().wait(0.5)
        number += 1
        log.warning("a judge is slow", seconds=0.25, number=number)
"""
ENGINE = """
import os, threading
import structlog
from tandem_api import logs, metrics
from tandem_api.exposition import gauge, registry, served
logs.configure(process="sidecar", pod=os.environ["TANDEM_POD_NAME"])
collected = registry()
gauge(metrics.ACTIVITY, collected).set(metrics.ACTIVITIES.index("Rollout"))
gauge(metrics.ENGINE_REQUESTS, collected).set(7)
with served(os.environ["TANDEM_POD_IP"], collected):
    structlog.get_logger().info("joined the job", index=int(os.environ["JOB_COMPLETION_INDEX"]))
    threading.Event().wait()
"""
TRAINER = """
import threading
print("step 1 of 8", flush=True)
threading.Event().wait()
"""


# The third warning: tests read the last three lines.
SAID = (("orchestrator", '"number": 3'), ("hybrid", "joined"), ("hybrid", "step 1"))


def tandem(*arguments: str, status: int = 0, kubeconfig: str = KUBECONFIG, cwd: Path | None = None) -> str:
    """What ``kubectl tandem`` prints; its exit status must be ``status``."""
    done = subprocess.run(
        ["kubectl", "tandem", *arguments],
        env=ENVIRONMENT | {"KUBECONFIG": kubeconfig},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == status, f"kubectl tandem {' '.join(arguments)}: {done.returncode}\n{done.stdout}"
    return done.stdout


def made_namespace(prefix: str) -> Iterator[str]:
    """A namespace under the restricted profile, on a cluster that knows RLJobs."""
    if not kubectl("get", "crd", "--ignore-not-found", "-o", "name", "rljobs.tandem-rl.dev").strip():
        kubectl("create", "-f", str(ROOT / "crds" / "rljobs.yaml"))
        kubectl("wait", "crd/rljobs.tandem-rl.dev", "--for=condition=Established", "--timeout=1m")
    name = f"{prefix}-{uuid.uuid4().hex[:6]}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    until(lambda: "default" in kubectl("get", "serviceaccounts", "-n", name), 120.0, "the default service account")
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def applied(namespace: str, name: str = "sums", **spec: Any) -> dict[str, Any]:
    raw = manifest(name, namespace, **spec)
    raw["metadata"] = {"name": name, "namespace": namespace}
    kubectl("apply", "-f", "-", stdin=json.dumps(raw))
    return one("rljob", name, namespace)


# -- with an operator, and no process of a job -------------------------------------------------------------------------


@pytest.fixture
def operated() -> Iterator[str]:
    yield from made_namespace("plugin")


@pytest_asyncio.fixture
async def store(operated: str, tmp_path: Path) -> AsyncIterator[Store]:
    """etcd, which an operator of the namespace uses."""
    with etcd_server(tmp_path) as running:
        process = OperatorProcess(tmp_path, operated, running.endpoints, "one")
        process.start()
        try:
            await eventually(process.ready)
            async with Store(running.endpoints) as opened:
                yield opened
        finally:
            await process.stop()
            print(process.log)


async def asked(*arguments: str, status: int = 0) -> str:
    return await asyncio.to_thread(tandem, *arguments, status=status)


def keys_of(raw: dict[str, Any]) -> JobKeys:
    return JobKeys(raw["metadata"]["namespace"], raw["metadata"]["name"], raw["metadata"]["uid"])


async def test_explain_names_what_is_in_the_way_with_its_event(operated: str, store: Store) -> None:
    applied(operated)

    async def refused() -> str | None:
        code, text = await asyncio.to_thread(explained, operated)
        return text if code == 1 and "cannot pull its image" in text and "Event" in text else None

    sentence = await eventually(refused, 120)
    assert sentence.startswith("sums is not progressing: Container ")
    assert re.search(r"\(Event \w+ of Pod sums-\S+(, \d+ times)?, last \d+m?s? ?\d*s? ago", sentence), sentence
    assert "ImagePullFailed" in await asked("status", "-n", operated)

    async def refused_by_hybrid_pod() -> str | None:
        # What explain named may have been the orchestrator's image.
        page = await asked("status", "sums", "-n", operated)
        return page if re.search(r"^sums-hybrid-0-\S+ +0/2 +Pending +engine ", page, re.MULTILINE) else None

    page = await eventually(refused_by_hybrid_pod)
    assert re.search(r"^Degraded +True +ImagePullFailed ", page, re.MULTILINE), page


def explained(namespace: str) -> tuple[int, str]:
    command = ["kubectl", "tandem", "explain", "sums", "-n", namespace]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=180)
    return done.returncode, done.stdout + done.stderr


async def test_a_checkpoint_is_asked_for_through_the_operator_and_waited_for(operated: str, store: Store) -> None:
    keys = keys_of(applied(operated))
    record = PhaseRecord(
        epoch=9, iteration=2, name=PhaseName.ROLLOUT, weight_version=2, world=1, members=(0,), started=1.0
    )
    await store.put(keys.phase, record.wire())
    until(lambda: one("rljob", "sums", operated).get("status", {}).get("iteration") == 2, 120.0, "the phase in status")
    waiting = asyncio.create_task(asked("checkpoint", "sums", "-n", operated, "--timeout", "150s"))

    async def wanted() -> bool:
        entry = await store.get(keys.desired)
        return entry is not None and Desired.model_validate_json(entry.value).checkpoint == 2

    await eventually(wanted)
    assert not waiting.done()
    await store.put(keys.progress, Progress(checkpoint_iteration=3, checkpoint_path="iter-0000003").wire())
    assert "sums has saved checkpoint iter-0000003 (after iteration 3).\n" in await waiting
    assert "nothing new to save" in await asked("checkpoint", "sums", "-n", operated)


async def test_suspend_and_resume_are_the_users_wish_and_explain_tells_them(operated: str, store: Store) -> None:
    applied(operated)
    assert "will be suspended" in await asked("suspend", "sums", "-n", operated)
    assert one("rljob", "sums", operated)["spec"]["runPolicy"]["suspend"] is True
    assert "suspended already" in await asked("suspend", "sums", "-n", operated)
    assert "kubectl tandem resume sums" in await asked("explain", "sums", "-n", operated, status=1)
    assert "goes on at iteration 0" in await asked("resume", "sums", "-n", operated)
    assert one("rljob", "sums", operated)["spec"]["runPolicy"]["suspend"] is False


# -- with a job's pods -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played() -> Iterator[str]:
    """A namespace in which the pods of the job ``sums`` run stand-ins."""
    for namespace in made_namespace("plugin"):
        job = jobs.read(applied(namespace, hybrid={"replicas": 2}))
        planned = plan(job, platform(), Secrets("token"))
        kubectl(
            "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": [*map(acted, planned)]})
        )
        status = {"phase": "Rollout", "iteration": 3, "hybridReady": "2/2", "observedGeneration": 1}
        change = ("--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
        kubectl("patch", "rljob", "sums", "-n", namespace, *change)
        kubectl("wait", "pods", "--all", "-n", namespace, "--for=condition=Ready", "--timeout=3m")
        until(lambda: all(speaks(namespace, *each) for each in SAID), 120.0, "the stand-ins' logs")  # noqa: B023 - called here
        yield namespace


def speaks(namespace: str, component: str, said: str) -> bool:
    """Whether every pod of the component has logged this."""
    label = f"app.kubernetes.io/component={component}"
    pods = len(kubectl("get", "pods", "-n", namespace, "-l", label, "-o", "name").split())
    log = kubectl("logs", "-n", namespace, "-l", label, "--all-containers", "--prefix", "--tail=-1")
    return len({line.split("/")[1] for line in log.splitlines() if said in line}) == pods


def acted(planned: dict[str, Any]) -> dict[str, Any]:
    """A planned object; the containers of a Job run stand-ins."""
    if planned["kind"] == "Job":
        spec = planned["spec"]["template"]["spec"]
        spec["terminationGracePeriodSeconds"] = 1
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            script = {"orchestrator": ORCHESTRATOR, "engine": ENGINE, "trainer": TRAINER}[container["name"]]
            figures = {"TIMELINE": TIMELINE.read_text(), "METRICS": "".join(json.dumps(row) + "\n" for row in METRICS)}
            container.update(image=IMAGE, command=["python", "-c", script], args=[])
            container["env"] += [{"name": name, "value": value} for name, value in figures.items()]
            container.pop("startupProbe", None)
            container.pop("readinessProbe", None)
    return planned


def test_logs_of_all_containers_are_one_stream_in_the_order_of_time(played: str) -> None:
    lines = tandem("logs", "sums", "-n", played).splitlines()
    assert [line[:12] for line in lines] == sorted(line[:12] for line in lines)
    named = {line.split()[1] for line in lines}
    members = (f"hybrid-{index}/{name}" for index in range(2) for name in ("engine", "trainer"))
    assert named == {"orchestrator", *members}
    assert any(re.search(r"orchestrator +phase  name=Rollout iteration=3$", line) for line in lines)
    assert any(re.search(r"hybrid-1/engine +joined the job  index=1$", line) for line in lines)
    assert any(re.search(r"hybrid-0/trainer +step 1 of 8$", line) for line in lines)


def test_logs_can_be_of_one_container_and_no_more_than_its_tail(played: str) -> None:
    lines = tandem("logs", "sums", "-n", played, "-c", "orchestrator", "--tail", "3").splitlines()
    assert len(lines) == 3
    assert all("a judge is slow  seconds=0.25" in line for line in lines)
    complaint = tandem("logs", "sums", "-n", played, "-c", "judge", status=2)
    assert "no container judge; there are orchestrator, engine, trainer" in complaint


def test_followed_logs_go_on_as_they_are_written(played: str) -> None:
    command = ["kubectl", "tandem", "logs", "sums", "-n", played, "-f", "--tail", "0"]
    environment = ENVIRONMENT | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        numbers = [int(following.stdout.readline().rpartition("number=")[2]) for _ in range(3)]
        following.terminate()
    assert numbers == list(range(numbers[0], numbers[0] + 3))


def test_top_shows_each_pods_utilisation_as_the_timeline_has_it(played: str) -> None:
    booked = attribute(map(json.loads, TIMELINE.read_text().splitlines()), 2)
    first, *rows = tandem("top", "sums", "-n", played).splitlines()
    assert first.split()[:5] == ["JOB", "/", "POD", "NOW", "UTILISATION"]
    expected = {"sums": utilisation(booked.values()), **{f"hybrid-{n}": utilisation([booked[n]]) for n in (0, 1)}}
    shown = {row.split()[0]: row.split() for row in rows}
    for name, busy in expected.items():
        assert busy is not None
        assert shown[name][1:3] == ["Rollout", f"{100 * busy:.1f}%"]
    assert {shown[name][-1] for name in ("hybrid-0", "hybrid-1")} == {"7"}


# -- what is not there, and not allowed --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def viewer(played: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The kubeconfig of somebody who may view the namespace, and its RLJobs, and nothing else."""
    in_place = ("-n", played)
    kubectl("create", "serviceaccount", "viewer", *in_place)
    kubectl("create", "role", "rljobs", *in_place, "--verb=get,list,watch", "--resource=rljobs.tandem-rl.dev")
    account = f"--serviceaccount={played}:viewer"
    kubectl("create", "rolebinding", "rljobs", *in_place, "--role=rljobs", account)
    kubectl("create", "rolebinding", "view", *in_place, "--clusterrole=view", account)
    token = kubectl("create", "token", "viewer", *in_place).strip()
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    config["users"] = [{"name": config["contexts"][0]["context"]["user"], "user": {"token": token}}]
    path = tmp_path_factory.mktemp("viewer") / "kubeconfig"
    path.write_text(json.dumps(config))
    return str(path)


def test_a_viewer_sees_jobs_and_their_logs_and_is_told_which_right_steering_takes(played: str, viewer: str) -> None:
    def refused(*arguments: str) -> str:
        return tandem(*arguments, "sums", "-n", played, status=2, kubeconfig=viewer)

    assert "Rollout" in tandem("status", "-n", played, kubeconfig=viewer)
    assert "step 1 of 8" in tandem("logs", "sums", "-n", played, "-c", "trainer", kubeconfig=viewer)
    assert "is progressing" in tandem("explain", "sums", "-n", played, kubeconfig=viewer)
    assert "forbidden: you may not get and create pods/exec" in tandem("top", "sums", "-n", played, kubeconfig=viewer)
    assert f"you may not get and create pods/exec in namespace {played}" in refused("report")
    assert f"you may not patch rljobs.tandem-rl.dev in namespace {played}" in refused("suspend")
    assert "you may not list rljobs.tandem-rl.dev in all namespaces" in tandem(
        "status", "-A", status=2, kubeconfig=viewer
    )


def test_a_wrong_name_is_answered_with_the_names_that_there_are(played: str) -> None:
    assert f"namespace {played} has no RLJob sum; there are sums" in tandem("status", "sum", "-n", played, status=2)


def content(page: Path) -> list[dict[str, Any]]:
    found = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    parsed: list[dict[str, Any]] = json.loads(found[1])
    return parsed


def test_the_report_is_written_of_a_job_that_runs_and_of_one_whose_orchestrator_has_ended(
    played: str, tmp_path: Path
) -> None:
    assert tandem("report", "sums", "-n", played, cwd=tmp_path).strip() == "sums.html"
    (running,) = content(tmp_path / "sums.html")
    assert running["metrics"] == METRICS
    assert len(running["timeline"]) == len(TIMELINE.read_text().splitlines())

    suspend = json.dumps({"spec": {"suspend": True}})
    kubectl("patch", "job", "sums-orchestrator", "-n", played, "--type=merge", "-p", suspend)
    of_it = ("-n", played, "-l", "app.kubernetes.io/component=orchestrator", "-o", "name")
    until(lambda: not kubectl("get", "pods", *of_it).strip(), 120.0, "the orchestrator's end")
    tandem("report", "sums", "-n", played, "--compare", f"{played}/sums", "--out", str(tmp_path / "ended.html"))
    assert [run["timeline"] for run in content(tmp_path / "ended.html")] == [running["timeline"]] * 2
    until(
        lambda: "report" not in kubectl("get", "pods", "-n", played, "-o", "name"), 120.0, "the end of the reading pod"
    )
    assert "its orchestrator does not run" in tandem("top", "sums", "-n", played)


def test_without_a_cluster_the_answer_says_which_one_was_asked(tmp_path: Path) -> None:
    away = {"cluster": {"server": "http://127.0.0.1:9"}, "name": "away"}
    context = {"context": {"cluster": "away", "user": "me"}, "name": "away"}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [away],
        "contexts": [context],
        "users": [{"name": "me", "user": {}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps({**config, "current-context": "away"}))
    answer = tandem("status", status=2, kubeconfig=str(tmp_path / "kubeconfig"))
    assert "no answer from http://127.0.0.1:9: " in answer
    assert "--context" in tandem("status", "--context", "gone", status=2, kubeconfig=str(tmp_path / "kubeconfig"))
