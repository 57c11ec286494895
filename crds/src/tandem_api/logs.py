# SPDX-License-Identifier: Apache-2.0
"""Logging of all processes: a sentence with fields; JSON in pods, colour on a terminal."""

import logging
import os
import sys

import structlog

from tandem_api.environment import LOG_FORMAT


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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(**fields)
