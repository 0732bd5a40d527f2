"""Logs: one line per event, JSON or for people; an event has a name and ids, not prose."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import structlog

from .settings import LogBlock

_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
# Without the values of local variables: a token or a key may be among them.
_TRACEBACK = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)


def configure(block: LogBlock, file: Path | None = None) -> None:
    """Sends structlog's events, and what libraries log, to ``file`` (appended to), or to stderr.

    :raises OSError: if the file cannot be opened.
    """
    level = logging.getLevelNamesMapping()[block.level.upper()]
    stream = sys.stderr if file is None else open(file, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
    if block.format == "json":
        final: list[structlog.typing.Processor] = [
            structlog.processors.ExceptionRenderer(_TRACEBACK),
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        final = [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    structlog.configure(
        processors=[*_SHARED, *final],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries tell at INFO of each connection and request: ours is the event that matters.
    root.setLevel(max(level, logging.WARNING) if level > logging.DEBUG else level)
