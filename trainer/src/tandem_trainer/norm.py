# SPDX-License-Identifier: Apache-2.0
"""RMSNorm for Megatron's own layers, where sequences may be cut over the tensor parallel ranks."""

from typing import Any

import torch


class RMSNorm(torch.nn.RMSNorm):
    """torch's, with the mark by which Megatron sums the weight's gradient over ranks that each saw a part of the
    sequence. Megatron's own wrapper refuses sequence parallelism, without which it trains no experts on several tensor
    parallel ranks.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel
