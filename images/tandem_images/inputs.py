# SPDX-License-Identifier: Apache-2.0
"""What goes into each image, and the hash that tells whether an image is up to date."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONTAINERFILE = ROOT / "images" / "Containerfile"
IGNORE_FILE = ROOT / "images" / "Containerfile.dockerignore"
REPOSITORY = "ghcr.io/tandem-rl"
VERSION = "0.1.0"
# Target of the Containerfile -> the members whose code it holds.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "operator": ("crds", "phases", "operator"),
    "orchestrator": ("crds", "phases", "orchestrator"),
    "engine": ("crds", "phases", "handoff", "sidecar"),
    "trainer": ("crds", "handoff", "trainer"),
}
_NOT_COPIED = ("Containerfile.dockerignore", "README.md", "build.py")


def image_name(target: str, accelerator: str) -> str:
    """The full name of an image; CUDA images carry it in their tag."""
    return f"{REPOSITORY}/{target}:{VERSION}" + ("-cuda" if accelerator == "cuda" else "")


def _files(target: str) -> Iterator[Path]:
    yield from (ROOT / "constraints.txt", ROOT / "pyproject.toml")
    yield from sorted(path for path in (ROOT / "images").iterdir() if path.is_file() and path.name not in _NOT_COPIED)
    yield from sorted(ROOT.glob("*/pyproject.toml"))
    for member in TARGETS[target]:
        found = (path for path in (ROOT / member / "src").rglob("*") if path.is_file())
        yield from sorted(path for path in found if "__pycache__" not in path.parts and path.suffix != ".pyc")


def input_hash(target: str, accelerator: str, base: str) -> str:
    """The hash of every file and argument that an image is made of. `base` identifies the base image."""
    digest = hashlib.sha256(f"{target} {accelerator} {base} {VERSION}".encode())
    for path in _files(target):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
