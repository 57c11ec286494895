# SPDX-License-Identifier: Apache-2.0
"""Puts images into the cluster's containerd, which has no registry to pull from."""

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import IO

from tandem_cluster.components import ctr, ctr_command
from tandem_cluster.errors import ClusterError
from tandem_cluster.layout import PAUSE_IMAGE, Node


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _pause_archive(binary: Path) -> bytes:
    """An image of one static program, in the format of `docker save`."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        _add(archive, "pause", binary.read_bytes(), 0o755)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]}]
    image = io.BytesIO()
    with tarfile.open(fileobj=image, mode="w") as archive:
        _add(archive, "layer.tar", layer.getvalue())
        _add(archive, "config.json", json.dumps(config).encode())
        _add(archive, "manifest.json", json.dumps(manifest).encode())
    return image.getvalue()


def import_pause(node: Node) -> None:
    """Imports the image that holds every pod's namespaces open."""
    file = node.state / "pause.tar"
    file.write_bytes(_pause_archive(node.state / "bin" / "pause"))
    result = ctr(node, "images", "import", str(file))
    if result.returncode != 0:
        raise ClusterError(f"containerd refuses the pause image: {result.stderr.decode().strip()}")
    file.unlink()


def import_archive(node: Node, archive: IO[bytes]) -> list[str]:
    """Imports an OCI or `docker save` archive from an open stream; returns the lines that containerd answers."""
    command = ctr_command(node, "images", "import", "--local", "-")
    result = subprocess.run(command, stdin=archive, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError(f"containerd refuses the archive: {result.stderr.strip()}")
    return result.stdout.splitlines()


def stored_blobs(node: Node) -> set[str]:
    """The digests (sha256:…) of what containerd holds already: layers that need not be sent again."""
    result = ctr(node, "content", "list", "--quiet")
    if result.returncode != 0:
        raise ClusterError(f"containerd does not answer (is the cluster up?): {result.stderr.decode().strip()}")
    return set(result.stdout.decode().split())


def copy_images(source: Node, target: Node) -> None:
    """Puts all images of one node's containerd into another's."""
    listed = ctr(source, "images", "list", "--quiet").stdout.decode().split()
    # By digest there is each image once more.
    names = [name for name in listed if not name.startswith("sha256:")]
    export = ctr_command(source, "images", "export", "--local", "-", *names)
    with subprocess.Popen(export, stdout=subprocess.PIPE) as exporting:
        assert exporting.stdout is not None
        import_archive(target, exporting.stdout)
    if exporting.returncode != 0:
        raise ClusterError(f"containerd of {source.name} does not export its images: see above")
