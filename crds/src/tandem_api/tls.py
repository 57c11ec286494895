# SPDX-License-Identifier: Apache-2.0
"""TLS between a job's pods: one certificate for the orchestrator, which the job's members believe and no other."""

import ssl
from pathlib import Path

from tandem_api.errors import TryAgain

CERTIFICATE = "tls.crt"
KEY = "tls.key"
"""Files of the mounted Secret, named as Kubernetes names them; the key is in the orchestrator's container alone."""


def server_context(directory: Path | None) -> ssl.SSLContext | None:
    """TLS 1.3 with the certificate and the key in ``directory``; None without one.

    Raises:
        TryAgain: they cannot be read, or do not belong together.
    """
    if directory is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(directory / CERTIFICATE, directory / KEY)
    except OSError as error:
        raise _unusable(directory, f"{CERTIFICATE} and {KEY}", error) from error
    return context


def member_context(directory: Path | None) -> ssl.SSLContext | None:
    """TLS 1.3 with whoever has the right name and a certificate that is, or is signed by, the one in ``directory``.

    None without a directory.

    Raises:
        TryAgain: the certificate cannot be read.
    """
    if directory is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(directory / CERTIFICATE)
    except OSError as error:
        raise _unusable(directory, CERTIFICATE, error) from error
    return context


def unproven(url: str, error: Exception) -> str:
    """A sentence on ``error``, by which OpenSSL refused the certificate of what answers at ``url``."""
    reason = str(getattr(error, "verify_message", error)).rstrip(".")
    return f"what answers at {url} is not this job's orchestrator ({reason}); it was sent neither token nor request"


def _unusable(directory: Path, files: str, error: OSError) -> TryAgain:
    return TryAgain(f"{directory}: {files} cannot be used: {error}; restore the Secret that is mounted there")
