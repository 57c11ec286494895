# SPDX-License-Identifier: Apache-2.0
"""TLS between a job's pods: one certificate for the orchestrator, which the job's members believe and no other."""

import ssl
from pathlib import Path

from tandem_api.errors import Problem, UserError

CERTIFICATE = "tls.crt"
KEY = "tls.key"
"""Files of the mounted Secret, named as Kubernetes names them; the key is in the orchestrator's container alone."""


def server_context(directory: Path) -> ssl.SSLContext:
    """TLS 1.3 with the certificate and the key in ``directory``.

    Raises:
        UserError: they cannot be read, or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(directory / CERTIFICATE, directory / KEY)
    except OSError as error:
        raise _unreadable(directory, f"{CERTIFICATE} and {KEY}", error) from error
    return context


def member_context(directory: Path) -> ssl.SSLContext:
    """TLS 1.3 with a server that has the certificate in ``directory``, or one that it signed, and the right name.

    Raises:
        UserError: the certificate cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(directory / CERTIFICATE)
    except OSError as error:
        raise _unreadable(directory, CERTIFICATE, error) from error
    return context


def unproven(url: str, error: Exception) -> str:
    """A sentence for the log: what answers at ``url`` could not prove to be the orchestrator; ``error`` is OpenSSL's."""
    reason = str(getattr(error, "verify_message", error)).rstrip(".")
    return f"what answers at {url} is not this job's orchestrator ({reason}); it was sent neither token nor request"


def _unreadable(directory: Path, files: str, error: OSError) -> UserError:
    return UserError(Problem(str(directory), f"{files} cannot be used: {error}; the job's Secret holds them"))
