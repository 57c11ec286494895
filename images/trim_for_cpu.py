# SPDX-License-Identifier: Apache-2.0
"""Makes a virtual environment smaller for machines without a GPU: `trim_for_cpu.py /opt/tandem`.

The public index has torch as a CUDA build only. That runs on a CPU as well, but brings 2.7 GB of NVIDIA libraries. Most
are never loaded and go. The rest the dynamic linker loads with torch, although no CPU code calls them: the large ones
are replaced by libraries of the same name and symbols whose functions say so and abort. Needs gcc and nm.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Loaded with torch, and small, or asked at import.
KEPT = ("libcudart.so", "libcudnn.so", "libcufile.so", "libcupti.so", "libnvshmem_host.so")
# Loaded with torch, large, and called for work on a GPU only.
REPLACED = (
    "libcublas.so",
    "libcublasLt.so",
    "libcufft.so",
    "libcurand.so",
    "libcusparse.so",
    "libcusparseLt.so",
    "libnccl.so",
    "libnvrtc.so",
)
UNUSED = (
    "nvidia/*/include",
    "torch/include",
    "torch/bin/protoc*",
    "torch/lib/libtorch_cuda_linalg.so",
    "triton/backends/nvidia/bin",
    "triton/backends/nvidia/include",
)
_FUNCTIONS = "TWi"


def _symbols(library: Path, which: str) -> Iterator[tuple[str, str, str]]:
    """Name, version (empty where there is none) and type letter of a library's dynamic symbols."""
    command = ["nm", "--dynamic", "--with-symbol-versions", f"--{which}-only", str(library)]
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        letter, symbol = line.split()[-2:]
        name, _, version = symbol.partition("@")
        yield name, version.lstrip("@"), letter


def replace(library: Path, called: set[str]) -> None:
    """Puts a library in the place of `library` that has those of its symbols that are in `called`, and no code."""
    symbols = [found for found in _symbols(library, "defined") if found[0] in called]
    source = [
        "extern int printf(const char *, ...);",
        "extern void abort(void) __attribute__((noreturn));",
        f'static void refuse(void) {{ printf("{library.name} is not in this image, which is for CPUs\\n"); abort(); }}',
    ]
    for name, _, letter in symbols:
        source.append(f"void {name}(void) {{ refuse(); }}" if letter in _FUNCTIONS else f"char {name}[4096];")
    versions = sorted({version for _, version, _ in symbols if version})
    script = "".join(
        f"{version} {{ global: {' '.join(f'{name};' for name, its, _ in symbols if its == version)} }};\n"
        for version in versions
    )
    with tempfile.TemporaryDirectory() as directory:
        code, mapping = Path(directory, "stub.c"), Path(directory, "versions")
        code.write_text("\n".join(source))
        mapping.write_text(script)
        soname = re.sub(r"(\.so\.\d+).*", r"\1", library.name)
        options = [f"-Wl,-soname,{soname}", *([f"-Wl,--version-script={mapping}"] if versions else [])]
        library.unlink()
        subprocess.run(["gcc", "-shared", "-fPIC", "-w", *options, "-o", str(library), str(code)], check=True)


def trim(site_packages: Path) -> None:
    doomed = [path for pattern in UNUSED for path in site_packages.glob(pattern)]
    libraries = [path for path in site_packages.glob("nvidia/*/lib/*") if path.is_file()]
    doomed += [path for path in libraries if not path.name.startswith((*KEPT, *REPLACED))]
    for path in doomed:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    torch = [path for path in (site_packages / "torch/lib").glob("*.so*") if path.is_file()]
    called = {name for library in torch for name, _, _ in _symbols(library, "undefined")}
    for library in libraries:
        if library.name.startswith(REPLACED) and library.exists():
            replace(library, called)


if __name__ == "__main__":
    for found in Path(sys.argv[1]).glob("lib/python3.*/site-packages"):
        trim(found)
