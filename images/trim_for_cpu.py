# SPDX-License-Identifier: Apache-2.0
"""Deletes from a virtual environment what a machine without a GPU never loads.

The public index has torch as a CUDA build only. That runs on a CPU as well, but brings 2.7 GB of NVIDIA libraries, of
which the dynamic linker asks for some (libtorch_cuda.so names them) and nobody asks for the rest.
"""

import shutil
import sys
from pathlib import Path

# What libtorch_cuda.so, libtorch_cpu.so and libtorch_nvshmem.so name as NEEDED, and what those need in turn.
LINKED = (
    "libcublas.so",
    "libcublasLt.so",
    "libcudart.so",
    "libcudnn.so",
    "libcufft.so",
    "libcufile.so",
    "libcupti.so",
    "libcurand.so",
    "libcusparse.so",
    "libcusparseLt.so",
    "libnccl.so",
    "libnvJitLink.so",
    "libnvrtc.so",
    "libnvshmem_host.so",
)
UNUSED = (
    "nvidia/*/include",
    "torch/include",
    "torch/bin/protoc*",
    "torch/lib/libtorch_cuda_linalg.so",
    "triton/backends/nvidia/bin",
    "triton/backends/nvidia/include",
)


def trim(site_packages: Path) -> int:
    """Deletes, and returns how many bytes that freed."""
    doomed = [path for pattern in UNUSED for path in site_packages.glob(pattern)]
    libraries = (path for path in site_packages.glob("nvidia/*/lib/*") if path.is_file())
    doomed += [path for path in libraries if not path.name.startswith(LINKED)]
    freed = 0
    for path in doomed:
        freed += sum(file.lstat().st_size for file in [path, *path.rglob("*")])
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return freed


if __name__ == "__main__":
    for found in Path(sys.argv[1]).glob("lib/python3.*/site-packages"):
        print(f"trimmed {trim(found) / 2**20:.0f} MiB from {found}")
