# SPDX-License-Identifier: Apache-2.0
"""Weights from one process to another through shared device memory.

An `Exporter` in the trainer packs named tensors into two alternating segments of memory; an `Importer` in the engine
maps them by descriptors that came over a Unix socket, and yields views. Nothing is written to a file, nothing is
pickled, and the only copy is the trainer's into the segment. Knows torch and nothing of Tandem's other members.
"""

from tandem_handoff.errors import (
    DeadlineExceededError,
    HandoffError,
    PeerLostError,
    PeerRefusedError,
    ProtocolError,
    ResourceLimitError,
    StaleStreamError,
    TensorRefusedError,
    VersionMismatchError,
)
from tandem_handoff.exporter import Exporter, drain
from tandem_handoff.importer import Expected, Importer
from tandem_handoff.manifest import Bucket, Manifest, TensorEntry, Verify

__all__ = [
    "Bucket",
    "DeadlineExceededError",
    "Expected",
    "Exporter",
    "HandoffError",
    "Importer",
    "Manifest",
    "PeerLostError",
    "PeerRefusedError",
    "ProtocolError",
    "ResourceLimitError",
    "StaleStreamError",
    "TensorEntry",
    "TensorRefusedError",
    "Verify",
    "VersionMismatchError",
    "drain",
]
