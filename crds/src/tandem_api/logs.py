# SPDX-License-Identifier: Apache-2.0
"""Logging of all processes: a sentence with fields; JSON in pods, colour on a terminal."""

import contextlib
import logging
import os
import sys
from typing import TextIO, cast

import structlog

from tandem_api.environment import LOG_FORMAT


class _StandardError:
    """Standard error, which may be a file on a volume without room: a line that cannot be written is lost."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def configure(**fields: object) -> None:
    """Set up structlog for this process; ``fields`` (``job=``, ``pod=``) stand on every line."""
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if os.environ.get(LOG_FORMAT) == "console"
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _StandardError())),
    )
    structlog.contextvars.bind_contextvars(**fields)
