# SPDX-License-Identifier: Apache-2.0
"""These tests need one GPU, torch for CUDA, cuda-bindings and xxhash; no vLLM and, but for one file, no Megatron."""

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        reason = f"torch {torch.__version__} sees no GPU here; run `make gpu-test` on a machine that has one"
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The first GPU; the reports name it."""
    print(f"\n{torch.cuda.get_device_name(0)}, driver for CUDA {torch.version.cuda}, torch {torch.__version__}")
    return torch.device("cuda", 0)
