#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds Tandem's images, those only whose inputs changed; `build.py --help` lists the options."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tandem_images.base import find_base
from tandem_images.builders import Builder, choose_builder, run
from tandem_images.errors import BuildError
from tandem_images.inputs import ROOT, VERSION, image_name, input_hash

CLUSTER = ROOT / "tests" / "cluster" / "cluster.py"
console = Console(stderr=True, highlight=False)


class Target(StrEnum):
    OPERATOR = "operator"
    ORCHESTRATOR = "orchestrator"
    ENGINE = "engine"
    TRAINER = "trainer"


class Accelerator(StrEnum):
    CPU = "cpu"
    CUDA = "cuda"


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    begin = time.monotonic()
    with console.status(title):
        yield
    console.print(f"[green]✓[/green] {title} [dim]{time.monotonic() - begin:.1f} s[/dim]")


def build(builder: Builder, target: str, accelerator: str, base: str) -> str:
    """Builds one image unless it is up to date; returns its name."""
    image = image_name(target, accelerator)
    inputs = input_hash(target, accelerator, builder.identity(base))
    if builder.built_from(image) != inputs:
        arguments = {"BASE": base, "ACCELERATOR": accelerator, "VERSION": VERSION}
        with step(f"building {image}"):
            builder.build(target, image, arguments, inputs)
    console.print(f"{image} is up to date: {builder.size(image)}")
    return image


def load(builder: Builder, images: Sequence[str], cluster: Path) -> None:
    """Puts images into the test cluster's containerd."""
    cluster_program = [sys.executable, str(CLUSTER)]
    stored = run([*cluster_program, "blobs", "--state", str(cluster)])
    with step("loading into the test cluster"):
        command = [*cluster_program, "load", "-", "--state", str(cluster)]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as importing:
            assert importing.stdin is not None
            builder.save(images, set(stored.split()), importing.stdin)
            importing.stdin.close()
    if importing.returncode != 0:
        raise BuildError("the test cluster did not take the images: see above")


def main(
    targets: Annotated[list[Target] | None, typer.Argument(help="What to build; all when none is named.")] = None,
    accelerator: Annotated[Accelerator, typer.Option(help="What engine and trainer run on.")] = Accelerator.CPU,
    base: Annotated[str, typer.Option(help="Base image with Python 3.12 or 3.13; found or made when absent.")] = "",
    load_into_cluster: Annotated[bool, typer.Option("--load", help="Put them into the test cluster.")] = False,
    cluster: Annotated[Path, typer.Option(help="State folder of that cluster.")] = ROOT / "build" / "cluster",
) -> None:
    """Build images with docker or buildah. An image whose inputs did not change is not built again."""
    builder = choose_builder()
    with step("base image"):
        base = base or find_base(builder)
    images = [build(builder, str(target), str(accelerator), base) for target in targets or Target]
    if load_into_cluster:
        load(builder, images, cluster)


if __name__ == "__main__":
    try:
        typer.run(main)
    except BuildError as error:
        console.print(f"error: {error}", style="red", markup=False)
        sys.exit(1)
