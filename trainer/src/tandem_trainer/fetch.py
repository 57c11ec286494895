# SPDX-License-Identifier: Apache-2.0
"""Bulk from the orchestrator over HTTP."""

import ssl
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse

import structlog

from tandem_api import tls

log = structlog.get_logger()

_PIECE = 1 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_FEWEST_SERVER_ERRORS = 500
_LONGEST_SENTENCE = 500


class FetchFailed(RuntimeError):
    """The orchestrator refused, sent too much, or was away until the deadline."""


def fetch(url: str, token: str, most_bytes: int, seconds: float, context: ssl.SSLContext | None = None) -> bytes:
    """GET ``url`` with the job's token, trying again while the orchestrator is away.

    ``context`` says whom to believe where the API is served over TLS (tandem_api.tls).

    Raises:
        FetchFailed: it answered with an error of ours (4xx), the body is larger than ``most_bytes``, or no whole
            answer came within ``seconds``.
    """
    opener = _opener(context)
    deadline = time.monotonic() + seconds
    pause = _FIRST_PAUSE
    while True:
        try:
            return _get(opener, url, token, most_bytes, deadline)
        except urllib.error.HTTPError as error:
            reason = _told(error)
            if error.code < _FEWEST_SERVER_ERRORS:
                raise FetchFailed(f"GET {url}: {reason}") from error
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
        left = deadline - time.monotonic()
        if left <= 0:
            raise FetchFailed(f"GET {url}: no whole answer within {seconds:.0f} s; the last try: {reason}")
        log.info("the orchestrator is away, trying again", url=url, error=reason)
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _told(error: urllib.error.HTTPError) -> str:
    """The status, and the sentence with which the orchestrator explains it."""
    with error:
        try:
            sentence = error.read(_LONGEST_SENTENCE).decode(errors="replace")
        except (OSError, HTTPException):
            sentence = ""  # the connection ended before it; the status is told
    return f"{error.code} {sentence or error.reason}"


def _opener(context: ssl.SSLContext | None) -> urllib.request.OpenerDirector:
    """No proxy that the environment names, for a model hub say, comes between a job's pods."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))


def _get(opener: urllib.request.OpenerDirector, url: str, token: str, most_bytes: int, deadline: float) -> bytes:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 (set by the pod template)
    left = max(0.1, deadline - time.monotonic())
    try:
        with opener.open(request, timeout=left) as response:
            return _read(response, url, most_bytes, deadline)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise ConnectionError(tls.unproven(url, error.reason)) from error
        raise


def _read(response: HTTPResponse, url: str, most_bytes: int, deadline: float) -> bytes:
    expected = int(response.headers.get("Content-Length", -1))
    body = bytearray()
    while piece := response.read(_PIECE):
        body += piece
        if len(body) > most_bytes:
            raise FetchFailed(f"GET {url}: the body is larger than the {most_bytes} bytes that this job can make")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(body)} bytes had come by the deadline")
    if expected >= 0 and len(body) != expected:
        raise ConnectionError(f"{len(body)} of {expected} bytes came")
    return bytes(body)
