# SPDX-License-Identifier: Apache-2.0
"""The two programs that build images, behind one interface."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from tandem_images.archive import label_in_layout, prune_layout, write_archive
from tandem_images.errors import BuildError
from tandem_images.inputs import CONTAINERFILE, IGNORE_FILE, ROOT

INPUTS_LABEL = "dev.tandem-rl.inputs"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def cache_directory() -> Path:
    """Where buildah keeps images and layers: outside the tree."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem" / "images"


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Runs a command to its end and returns its output; raises BuildError with the end of what it complained of."""
    variables = {**os.environ, **(environment or {})}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if result.returncode != 0:
        said = (result.stdout + result.stderr).strip()[-6000:]
        raise BuildError(f"{' '.join(command)} failed with exit status {result.returncode}:\n{said}")
    return result.stdout


class Builder(Protocol):
    """What can build the Containerfile's targets."""

    def pull(self, image: str) -> bool:
        """Whether `image` is here or can be fetched from its registry."""

    def built_from(self, image: str) -> str:
        """The input hash that a local image is labelled with; empty where there is no such image."""

    def identity(self, image: str) -> str:
        """The id of a local image: changes when its content does."""

    def build(self, target: str, image: str, arguments: Mapping[str, str], inputs: str) -> None:
        """Builds one target as `image`, labelled with the hash of its inputs."""

    def size(self, image: str) -> str:
        """The size of a local image with all its layers, for people."""

    def save(self, images: Sequence[str], known: set[str], archive: IO[bytes]) -> None:
        """Writes images as one archive; may leave out layers whose digests are in `known`."""


class Buildah:
    """buildah with a storage of its own, so that it neither finds nor fills the machine's."""

    def __init__(self) -> None:
        root = cache_directory()
        root.mkdir(parents=True, exist_ok=True)
        self.storage = root / "storage"
        self._command = ["buildah", "--root", str(self.storage), "--runroot", "/run/tandem-images"]
        self._command += ["--storage-driver", "overlay"]

    def call(self, *arguments: str) -> str:
        return run([*self._command, *arguments])

    def pull(self, image: str) -> bool:
        command = [*self._command, "pull", "--quiet", "--policy", "missing", image]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def exists(self, image: str) -> bool:
        command = [*self._command, "inspect", "--type", "image", image]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def built_from(self, image: str) -> str:
        if not self.exists(image):
            return ""
        label = f'{{{{index .OCIv1.Config.Labels "{INPUTS_LABEL}"}}}}'
        return self.call("inspect", "--type", "image", "--format", label, image).strip()

    def identity(self, image: str) -> str:
        return self.call("inspect", "--type", "image", "--format", "{{.FromImageID}}", image).strip()

    def build(self, target: str, image: str, arguments: Mapping[str, str], inputs: str) -> None:
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        if CERTIFICATES.exists():
            options.append(f"--secret=id=ca,src={CERTIFICATES}")
        # chroot: a build needs no namespaces, and works where making them is forbidden.
        self.call(
            "bud", "--isolation=chroot", "--layers", "--pull-never", f"--target={target}", f"--tag={image}", *options,
            f"--label={INPUTS_LABEL}={inputs}", f"--ignorefile={IGNORE_FILE}", f"--file={CONTAINERFILE}", str(ROOT),
        )  # fmt: skip

    def size(self, image: str) -> str:
        return str(json.loads(self.call("images", "--json", image))[0]["size"])

    def save(self, images: Sequence[str], known: set[str], archive: IO[bytes]) -> None:
        layout = cache_directory() / "layout"
        for image in images:
            built_from = self.built_from(image)  # empty if it was pulled, and then nothing says whether it has changed
            if built_from and label_in_layout(layout, image, INPUTS_LABEL) == built_from:
                continue
            # Layers that the layout has already are not written again, but they are read: a minute for a large image.
            self.call("push", "--quiet", "--disable-compression", image, f"oci:{layout}:{image}")
        prune_layout(layout)
        write_archive(layout, images, known, archive)


class Docker:
    """The docker daemon's builder (BuildKit)."""

    def pull(self, image: str) -> bool:
        return bool(self._inspect(image, "{{.Id}}")) or (
            subprocess.run(["docker", "pull", "--quiet", image], capture_output=True, check=False).returncode == 0
        )

    def _inspect(self, image: str, template: str) -> str:
        command = ["docker", "image", "inspect", "--format", template, image]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else ""

    def built_from(self, image: str) -> str:
        return self._inspect(image, f'{{{{index .Config.Labels "{INPUTS_LABEL}"}}}}')

    def identity(self, image: str) -> str:
        return self._inspect(image, "{{.Id}}")

    def build(self, target: str, image: str, arguments: Mapping[str, str], inputs: str) -> None:
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        if CERTIFICATES.exists():
            options.append(f"--secret=id=ca,src={CERTIFICATES}")
        label = f"--label={INPUTS_LABEL}={inputs}"
        command = ["docker", "build", f"--target={target}", f"--tag={image}", label, *options]
        run([*command, f"--file={CONTAINERFILE}", str(ROOT)], {"DOCKER_BUILDKIT": "1"})

    def size(self, image: str) -> str:
        return f"{int(self._inspect(image, '{{.Size}}')) / 1e6:.0f} MB"

    def save(self, images: Sequence[str], known: set[str], archive: IO[bytes]) -> None:
        subprocess.run(["docker", "save", *images], stdout=archive, check=True)


def choose_builder() -> Builder:
    """docker where its daemon answers; otherwise buildah, installed where it is missing."""
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        return Docker()
    run([str(ROOT / "hack" / "debian-packages"), "buildah", "runc"])
    return Buildah()
