# SPDX-License-Identifier: Apache-2.0
"""Content checks at memory speed, where the tensor lies. docs/decisions/checksums.md says what they find, and why."""

import math

import torch
import xxhash

_CHUNK = 512 * 1024
"""Bytes that are read from memory once: what is done with them next finds them in the CPU's cache."""
_COLUMNS = 8192
"""Words of 8 bytes in a row of the GPU's sums."""


def checksum(tensor: torch.Tensor) -> int:
    """A 64-bit checksum of a tensor's bytes, in the order of its elements: XXH3, or on a GPU XXH3 of `condensed`."""
    content = _bytes(tensor)
    if not _on_cpu(content):
        return xxhash.xxh3_64_intdigest(condensed(content).numpy())
    return xxhash.xxh3_64_intdigest(content.numpy())


def copy_with_checksum(source: torch.Tensor, target: torch.Tensor) -> int:
    """Copies into a contiguous tensor of the same dtype and shape; the checksum is of the source."""
    content = _bytes(source)
    if not _on_cpu(content) or not _on_cpu(target):
        target.copy_(source)
        return checksum(content if content.device == target.device else target)
    read, written = content.numpy(), _bytes(target).numpy()  # whose slices cost far less than tensors'
    hashed = xxhash.xxh3_64()
    for start in range(0, len(read), _CHUNK):
        piece = read[start : start + _CHUNK]
        written[start : start + _CHUNK] = piece
        hashed.update(piece)
    return hashed.intdigest()


def checksum_and_finite(tensor: torch.Tensor) -> tuple[int, bool]:
    """The checksum, and whether the tensor holds neither NaN nor infinity (true for integers)."""
    if not _on_cpu(tensor):
        return checksum(tensor), is_finite(tensor)
    values = tensor.detach().contiguous().reshape(-1)
    content = _bytes(values).numpy()
    hashed = xxhash.xxh3_64()
    finite = True
    for number, piece in enumerate(values.split(_CHUNK // values.element_size())):
        hashed.update(content[number * _CHUNK : (number + 1) * _CHUNK])
        finite = finite and is_finite(piece)
    return hashed.intdigest(), finite


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; true for integers."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() == 1:  # 8-bit floats have no arithmetic of their own
        return all(is_finite(piece.to(torch.float32)) for piece in tensor.reshape(-1).split(_CHUNK))
    if math.isfinite(tensor.sum().item()):  # far faster than looking at each; NaN and infinity survive a sum
        return True
    low, high = torch.aminmax(tensor)  # a sum of finite numbers may overflow
    return bool((torch.isfinite(low) & torch.isfinite(high)).item())


def condensed(content: torch.Tensor) -> torch.Tensor:
    """int64 [about 1/8192 of the words] on the CPU: what a GPU sums up of its bytes (uint8 [n]), for a CPU to hash.

    The words of 8 bytes are laid out in rows of 8192; the sums of each row and of each column modulo 2^64 are taken,
    and the words that fill no row are taken as they are.
    """
    if content.storage_offset() % 8:
        content = content.clone()
    words = content[: content.numel() // 8 * 8].view(torch.int64)
    whole = words.numel() // _COLUMNS * _COLUMNS
    rows = words[:whole].view(-1, _COLUMNS)
    last = torch.zeros(8, dtype=torch.uint8, device=content.device)
    last[: content.numel() % 8] = content[words.numel() * 8 :]
    return torch.cat([rows.sum(0), rows.sum(1), words[whole:], last.view(torch.int64)]).cpu()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """uint8 [nbytes], without a copy if the tensor is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _on_cpu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu"
