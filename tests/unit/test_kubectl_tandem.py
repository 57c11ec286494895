# SPDX-License-Identifier: Apache-2.0
"""kubectl tandem's tables and figures, what it makes and runs in a cluster, and what it costs to start."""

import io
import json
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from operator_fixture import NOW, manifest, platform, rljob
from prometheus_client import CollectorRegistry, generate_latest

from tandem_api import metrics as declared
from tandem_api.environment import Secrets
from tandem_api.exposition import counter, gauge
from tandem_api.labels import JOB_LABEL
from tandem_api.utilisation import Use, attribute, utilisation
from tandem_cli.cluster import in_pod
from tandem_cli.cluster.errors import ClusterError
from tandem_cli.cluster.main import Duration
from tandem_cli.cluster.objects import Job
from tandem_cli.cluster.reading import reader_pod
from tandem_cli.cluster.status import jobs_table
from tandem_cli.cluster.table import age
from tandem_cli.cluster.top import Member, Usage, booked, member, page
from tandem_cli.cluster.wishes import resume, suspend
from tandem_operator.plan import identity, plan
from tandem_operator.times import rfc3339

TIMELINE = Path(__file__).parents[1] / "timelines" / "two-pods.jsonl"


def job(**status: Any) -> Job:
    raw = manifest()
    raw["metadata"]["creationTimestamp"] = rfc3339(NOW - 190)
    return Job.of({**raw, "status": {"observedGeneration": 1} | status})


def test_a_job_of_a_newer_operator_can_still_be_read() -> None:
    raw = manifest() | {"status": {"phase": "Train", "newerField": 1}}
    raw["spec"]["alsoNewer"] = {}
    assert Job.of(raw).status.phase == "Train"


def test_a_status_that_cannot_be_read_names_the_field_and_the_way_out() -> None:
    with pytest.raises(ClusterError, match=r"status\.buffer\.moved of RLJob sums .* install the plugin"):
        Job.of(manifest() | {"status": {"buffer": {"moved": 1}}})


def test_the_table_has_a_line_a_job_with_what_is_in_its_way() -> None:
    told = {"type": "Scheduled", "status": "False", "reason": "Unschedulable", "message": "No node fits."}
    stuck = job(conditions=[told | {"lastTransitionTime": rfc3339(NOW - 100)}])
    going = job(phase="Rollout", iteration=2, accuracy=0.5, reward=0.25, hybridReady="1/1")
    heading, *rows = jobs_table([stuck, going], NOW, namespaces=True).splitlines()
    names = "NAMESPACE NAME PHASE ITERATION ACCURACY REWARD PODS CONDITION RESTARTS AGE"
    assert heading.split() == names.split()
    assert rows[0].split() == ["team", "sums", "Pending", "0/4", "–", "–", "0/0", "Unschedulable", "0", "3m10s"]
    assert rows[1].split() == ["team", "sums", "Rollout", "2/4", "50.0%", "0.250", "1/1", "Progressing", "0", "3m10s"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (59.9, "59s"), (60, "1m"), (86399, "23h"), (90000, "1d1h")])
def test_ages_read_as_kubectls_do(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_durations_are_written_as_in_go() -> None:
    assert [Duration().convert(text, None, None) for text in ("90s", "5m", "1h30m")] == [90, 300, 5400]


def test_utilisation_from_metrics_is_that_of_the_timeline() -> None:
    collected = CollectorRegistry()
    seconds = counter(declared.ACCELERATOR_SECONDS, collected)
    counted = attribute(map(json.loads, TIMELINE.read_text().splitlines()), 2)
    for index, uses in counted.items():
        for use, value in uses.items():
            seconds.labels(index, use).inc(value)
    read = booked(generate_latest(collected).decode())
    assert read == counted
    busy = utilisation(counted.values())
    assert busy is not None
    members = {0: Member("Rollout", 7)}
    _, total, first, second = page([Usage(job(phase="Rollout"), read, members)], namespaces=False).splitlines()
    assert total.split()[:3] == ["sums", "Rollout", f"{100 * busy:.1f}%"]
    assert first.split()[:2] == ["hybrid-0", "Rollout"]
    assert first.split()[-1] == "7"
    assert second.split()[:2] == ["hybrid-1", "–"]


def test_without_books_the_share_of_phases_is_shown_as_the_bound_that_it_is() -> None:
    status = {"phase": "Train", "phaseSeconds": {"rollout": 60.0, "train": 20.0, "warmup": 10.0, "start": 10.0}}
    _, row, note = page([Usage(job(**status), why_not="forbidden")], namespaces=False).splitlines()
    assert row.split()[:5] == ["sums", "Train", "≤90.0%", "60.0%", "30.0%"]
    assert note == "sums: from status, by phase alone, since forbidden."


def test_a_sidecar_says_what_it_does() -> None:
    collected = CollectorRegistry()
    gauge(declared.ACTIVITY, collected).set(declared.ACTIVITIES.index("Train"))
    gauge(declared.ENGINE_REQUESTS, collected).set(3)
    assert member(generate_latest(collected).decode()) == Member("Train", 3)


def test_the_orchestrators_job_is_read_by_the_name_that_the_operator_gives_it() -> None:
    assert identity.orchestrator_name("sums") == "sums-orchestrator"


def test_the_reading_pod_is_the_orchestrators_without_its_labels_secrets_and_writes() -> None:
    planned = plan(rljob(), platform(), Secrets("token"))
    workload = next(one for one in planned if one["kind"] == "Job" and one["metadata"]["name"] == "sums-orchestrator")
    made = reader_pod(job(), workload)
    assert JOB_LABEL not in made["metadata"]["labels"]
    (container,) = made["spec"]["containers"]
    assert container["image"] == "orchestrator:1"
    assert [mount["readOnly"] for mount in container["volumeMounts"]] == [True]
    assert [volume["name"] for volume in made["spec"]["volumes"]] == ["state"]
    assert made["spec"]["securityContext"] == workload["spec"]["template"]["spec"]["securityContext"]
    assert made["metadata"]["ownerReferences"][0]["uid"] == job().metadata["uid"]


def test_what_runs_in_a_pod_needs_nothing_but_python_and_hands_back_the_figures(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"iteration":0}\n')
    (tmp_path / "buffer.sqlite").write_text("never leaves the cluster")
    source = Path(in_pod.__file__).read_text()
    command = [sys.executable, "-I", "-S", "-c", source, "files"]
    archive = subprocess.run(command, env={"TANDEM_STATE_DIR": str(tmp_path)}, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as files:
        assert files.getnames() == ["metrics.jsonl"]


def test_what_runs_in_a_pod_reads_the_metrics_that_its_process_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())

    with HTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = Path(in_pod.__file__).read_text().replace("= 9400", f"= {server.server_port}")
        command = [sys.executable, "-I", "-S", "-c", source, "metrics"]
        answer = subprocess.run(command, env={"TANDEM_POD_IP": "127.0.0.1"}, capture_output=True, check=True).stdout
        server.shutdown()
    assert answer == b"/metrics"


@pytest.mark.parametrize("wish", [suspend, resume])
def test_a_job_that_has_ended_is_neither_suspended_nor_resumed(wish: Any) -> None:
    done = {"type": "Complete", "status": "True", "reason": "IterationsCompleted", "message": "All done."}
    ended = job(conditions=[done | {"lastTransitionTime": rfc3339(NOW)}])
    with pytest.raises(ClusterError, match="it has ended"):
        wish(None, ended)


def test_help_does_not_wait_for_the_client_library_and_no_command_for_torch() -> None:
    probe = (
        "import sys; from tandem_cli.cluster import main; assert 'kubernetes' not in sys.modules;"
        "from tandem_cli.cluster import explain, logs, report, status, top, wishes;"
        "assert 'kubernetes.client.api.core_v1_api' not in sys.modules; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_uses_are_all_shown_by_top() -> None:
    heading = page([Usage(job(), why_not="x")], namespaces=False).splitlines()[0].lower().split()
    assert all(use.value in heading for use in Use)
