# SPDX-License-Identifier: Apache-2.0
"""Writes images of an OCI layout as one archive, without the layers that its reader has already."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tandem_images.errors import BuildError

_NAME = "org.opencontainers.image.ref.name"


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / Path(*digest.split(":"))


def _manifests(layout: Path, images: Sequence[str]) -> Iterator[dict[str, Any]]:
    index = json.loads((layout / "index.json").read_text())
    described = {entry.get("annotations", {}).get(_NAME): entry for entry in index["manifests"]}
    for image in images:
        if image not in described:
            raise BuildError(f"the layout {layout} has no image {image}: it has {sorted(filter(None, described))}")
        # Both annotations: containerd takes the full name from the second.
        yield described[image] | {"annotations": {_NAME: image, "io.containerd.image.name": image}}


def label_in_layout(layout: Path, image: str, label: str) -> str:
    """The value of an image's label; empty when the layout has no such image, or the image no such label."""
    if not (layout / "index.json").exists():
        return ""
    for entry in json.loads((layout / "index.json").read_text())["manifests"]:
        if entry.get("annotations", {}).get(_NAME) == image:
            manifest = json.loads(_blob(layout, entry["digest"]).read_text())
            config = json.loads(_blob(layout, manifest["config"]["digest"]).read_text())
            value: str = config["config"].get("Labels", {}).get(label, "")
            return value
    return ""


def _digests(layout: Path, manifests: Sequence[dict[str, Any]], known: set[str]) -> dict[str, None]:
    """The blobs to write, each once: manifests and configurations always, layers that the reader does not know."""
    found: dict[str, None] = {}
    for entry in manifests:
        manifest = json.loads(_blob(layout, entry["digest"]).read_text())
        layers = [layer["digest"] for layer in manifest["layers"] if layer["digest"] not in known]
        found |= dict.fromkeys([entry["digest"], manifest["config"]["digest"], *layers])
    return found


def prune_layout(layout: Path) -> None:
    """Deletes the blobs of images that were replaced by later ones of the same name."""
    manifests = json.loads((layout / "index.json").read_text())["manifests"]
    used = {_blob(layout, digest) for digest in _digests(layout, manifests, set())}
    for blob in (layout / "blobs").glob("*/*"):
        if blob not in used:
            blob.unlink()


def _add(archive: tarfile.TarFile, name: str, content: dict[str, Any]) -> None:
    data = json.dumps(content).encode()
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def write_archive(layout: Path, images: Sequence[str], known: set[str], output: IO[bytes]) -> None:
    """Writes an OCI archive of `images` to a stream. Layers shared between them are written once."""
    manifests = list(_manifests(layout, images))
    with tarfile.open(fileobj=output, mode="w|") as archive:
        _add(archive, "oci-layout", {"imageLayoutVersion": "1.0.0"})
        for digest in _digests(layout, manifests, known):
            blob = _blob(layout, digest)
            archive.add(blob, arcname=str(blob.relative_to(layout)))
        _add(archive, "index.json", {"schemaVersion": 2, "manifests": manifests})
