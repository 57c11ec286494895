# SPDX-License-Identifier: Apache-2.0
"""Runs inside a job's container: ``python -I -S -c SOURCE metrics|files``, SOURCE being this file.

What the processes serve is bound to the pod's address, and the job's NetworkPolicies let in only its own pods and
Prometheus; so what is to be read is read where it is, with the right to exec and nothing else. It comes with the
plugin, so an older image needs no part of it but Python.
"""

import http.client
import os
import sys
import tarfile
from pathlib import Path

FILES = ("metrics.jsonl", "timeline.jsonl")
METRICS_PORT = 9400


def metrics() -> None:
    """What this container's process tells Prometheus."""
    connection = http.client.HTTPConnection(os.environ["TANDEM_POD_IP"], METRICS_PORT, timeout=10)
    connection.request("GET", "/metrics")
    sys.stdout.buffer.write(connection.getresponse().read())


def files() -> None:
    """The run's figures, as a compressed archive; what is not there yet is left out."""
    state = Path(os.environ["TANDEM_STATE_DIR"])
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|gz") as archive:
        for name in FILES:
            if (state / name).exists():
                archive.add(state / name, name)


if __name__ == "__main__":
    {"metrics": metrics, "files": files}[sys.argv[1]]()
