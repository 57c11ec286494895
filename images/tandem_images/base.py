# SPDX-License-Identifier: Apache-2.0
"""The base image: the public Python image, or one like it from Debian packages where there is no registry."""

import shutil
import tempfile
from pathlib import Path

from tandem_images.builders import Buildah, Builder, run
from tandem_images.errors import BuildError
from tandem_images.inputs import ROOT

PUBLIC = "docker.io/library/python:3.13-slim"
LOCAL = "localhost/python:3.13-slim"
# The release whose python3 is 3.13.
SUITE = "trixie"
PACKAGES = ("ca-certificates", "python3", "python3-venv")
_SUPERFLUOUS = ("usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/log")


def _bootstrap(root: Path) -> None:
    run([str(ROOT / "hack" / "debian-packages"), "debootstrap"])
    run(["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)])
    # The machine's own; whoever runs the image brings theirs.
    for name in ("etc/resolv.conf", "etc/hostname"):
        (root / name).write_text("")
    for name in _SUPERFLUOUS:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
    shutil.rmtree(root / "var/lib/apt/lists")
    (root / "var/lib/apt/lists/partial").mkdir(parents=True)


def _build_local(builder: Buildah) -> None:
    with tempfile.TemporaryDirectory(dir=builder.storage.parent) as directory:
        root = Path(directory) / "root"
        root.mkdir()
        _bootstrap(root)
        container = builder.call("from", "scratch").strip()
        try:
            builder.call("copy", "--quiet", container, str(root), "/")
            builder.call("config", "--cmd", '["python3"]', container)
            builder.call("commit", "--quiet", container, LOCAL)
        finally:
            builder.call("rm", container)


def find_base(builder: Builder) -> str:
    """The name of the base image, which is present when this returns. Raises BuildError when none can be had."""
    if isinstance(builder, Buildah) and builder.exists(LOCAL):
        return LOCAL
    if builder.pull(PUBLIC):
        return PUBLIC
    if not isinstance(builder, Buildah):
        raise BuildError(f"docker cannot pull {PUBLIC}: name an image with Python 3.12 or 3.13 with --base")
    _build_local(builder)
    return LOCAL
