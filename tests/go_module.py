# SPDX-License-Identifier: Apache-2.0
"""Source of other projects that tests read or build: Go modules, downloads that are checked by their hash."""

import json
import os
import subprocess
from pathlib import Path


def fetched(module: str, checksum: str) -> Path:
    """The folder of ``module``, given as ``path@version``. Go's module cache keeps it."""
    command = ["go", "mod", "download", "-json", module]
    # The hash is the check; the checksum database would be one more place to reach.
    environment = os.environ | {"GOFLAGS": "-mod=mod", "GONOSUMDB": module.partition("@")[0]}
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    found = json.loads(done.stdout)
    assert found["Sum"] == checksum, f"{module} has hash {found['Sum']}, expected {checksum}"
    return Path(found["Dir"])
