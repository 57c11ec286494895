# SPDX-License-Identifier: Apache-2.0
"""The Prometheus operator's CustomResourceDefinitions, from its Go module: a download that is checked by its hash."""

import json
import os
import subprocess
from pathlib import Path

MODULE = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
SUM = "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s="
KINDS = ("podmonitors", "servicemonitors", "prometheusrules")
GROUP = "monitoring.coreos.com"


def definitions() -> dict[str, Path]:
    """The files of the kinds that Tandem makes, by the names of their definitions. Go's module cache keeps them."""
    command = ["go", "mod", "download", "-json", MODULE]
    # The hash above is the check; the checksum database would be one more place to reach.
    environment = os.environ | {"GOFLAGS": "-mod=mod", "GONOSUMDB": "github.com/prometheus-operator/*"}
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    found = json.loads(done.stdout)
    assert found["Sum"] == SUM, f"{MODULE} has hash {found['Sum']}, expected {SUM}"
    folder = Path(found["Dir"]) / "example" / "prometheus-operator-crd"
    return {f"{kind}.{GROUP}": folder / f"{GROUP}_{kind}.yaml" for kind in KINDS}
