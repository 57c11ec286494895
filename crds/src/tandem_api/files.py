# SPDX-License-Identifier: Apache-2.0
"""Files that others may read at any moment."""

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, content: bytes, *, durable: bool = False, mode: int = 0o644) -> None:
    """Put ``content`` in the place of a file at once: a reader finds what was there before, or all of it.

    ``durable``: it takes that place only when it is on the disk. ``mode``: who may read it.

    Raises:
        OSError: it could not be written; what was there before still is, and nothing else.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink()
        raise
