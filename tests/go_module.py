# SPDX-License-Identifier: Apache-2.0
"""Source of other projects that tests read or build: Go modules, downloads that are checked by their hash."""

import json
import os
import shutil
import subprocess
import tempfile
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


def built(source: Path, package: str, program: str) -> Path:
    """``program`` from ``package`` of a fetched module; built once, in minutes, and kept outside the tree."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem" / program
    kept = cache / source.name.partition("@")[2]
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as unfinished:
            # Go builds no program of a module in place of the main one, and its module cache cannot be written to.
            tree = Path(shutil.copytree(source, Path(unfinished) / "source"))
            for folder, _, _ in os.walk(tree):
                Path(folder).chmod(0o755)
            (tree / "go.mod").chmod(0o644)
            (tree / "go.sum").chmod(0o644)
            build = ["go", "build", "-ldflags", "-s -w", "-o", f"{unfinished}/{program}", package]
            subprocess.run(["nice", "-n", "10", *build], cwd=tree, env=os.environ | {"CGO_ENABLED": "0"}, check=True)
            Path(unfinished, program).rename(kept)
    return kept
