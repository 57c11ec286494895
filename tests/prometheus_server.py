# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus that scrapes the pods of a local run as a PodMonitor would have it."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ports import free_port
from running import ROOT, processes_of
from waiting import until

_ANSWER_SECONDS = 10.0
_CONFIGURATION = """
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
  - job_name: pods
    file_sd_configs: [{files: [targets.json], refresh_interval: 1s}]
"""


@dataclass(frozen=True)
class Prometheus:
    url: str
    directory: Path

    def scrape(self, out: Path, pods: int, seconds: float) -> None:
        """Scrape the run in ``out`` once so many pods are there, orchestrator included, and its etcd as well."""
        found = until(lambda: pods <= len(pods_of(out)) and pods_of(out), seconds, f"the start of {pods} pods")
        job = {"namespace": "default", "tandem_rl_dev_job": "chain-sum"}
        targets = {f"{address}:9400": {**job, "pod": pod} for pod, (address, _) in found.items()}
        self.target(targets | {endpoint: {"namespace": "default", "pod": "etcd"} for _, endpoint in found.values()})

    def target(self, targets: Mapping[str, Mapping[str, str]]) -> None:
        """Scrape these, by host and port, with the labels given to each."""
        groups = [{"targets": [target], "labels": labels} for target, labels in targets.items()]
        waiting = self.directory / "waiting.json"
        waiting.write_text(json.dumps(groups))
        waiting.replace(self.directory / "targets.json")


def pods_of(out: Path) -> dict[str, tuple[str, str]]:
    """Address and etcd's endpoint of each pod of a local run whose processes have started, by the pod's name."""
    found = {}
    for number in processes_of(out):
        try:
            content = Path(f"/proc/{number}/environ").read_bytes().decode(errors="replace")
        except OSError:  # it ended while we looked
            continue
        variables = dict(item.split("=", 1) for item in content.split("\0") if "=" in item)
        if "TANDEM_POD_IP" in variables:
            place = variables["TANDEM_POD_IP"], variables["TANDEM_ETCD_ENDPOINTS"]
            found[variables["TANDEM_POD_NAME"]] = place
    return found


@contextmanager
def prometheus(directory: Path) -> Iterator[Prometheus]:
    """Prometheus with its data in ``directory``, until the block is left."""
    found = subprocess.run([ROOT / "hack" / "prometheus"], stdout=subprocess.PIPE, text=True, check=True)
    (directory / "prometheus.yml").write_text(_CONFIGURATION)
    url = f"http://127.0.0.1:{free_port()}"
    with (directory / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                Path(found.stdout.strip()) / "prometheus",
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address={url.removeprefix('http://')}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        until(lambda: process.poll() is not None or _ready(url), 60.0, "Prometheus's start")
        assert process.poll() is None, (directory / "prometheus.log").read_text()
        yield Prometheus(url, directory)
    finally:
        process.terminate()
        process.wait()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=_ANSWER_SECONDS) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
