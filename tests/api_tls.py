# SPDX-License-Identifier: Apache-2.0
"""The Secret behind TLS between a job's pods, as the operator draws it and as pods mount it."""

from pathlib import Path

from tandem_api import tls
from tandem_operator.certificates import draw


def secret(directory: Path, *names: str) -> Path:
    """What the orchestrator mounts, if its Service has these names: certificate and key."""
    directory.mkdir()
    drawn = draw(names)
    (directory / tls.CERTIFICATE).write_text(drawn.certificate)
    (directory / tls.KEY).write_text(drawn.key)
    return directory


def certificate_alone(directory: Path, mounted: Path) -> Path:
    """What members mount of it."""
    directory.mkdir()
    (directory / tls.CERTIFICATE).write_bytes((mounted / tls.CERTIFICATE).read_bytes())
    return directory
