"""Logs: one line per event, JSON or for people; an event has a name of the table in events.py and ids, not prose.

No line holds a secret or what a job was given: events name ids and reasons, tracebacks have no values of variables.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import logging
import os
import re
import secrets
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TextIO, cast

import structlog

from .settings import LogBlock

log = structlog.get_logger()

REQUEST_ID = "x-request-id"
"""The header, and the gRPC metadata, that carries the id of a request."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Unique without asking the system for randomness at each request.
_PREFIX, _COUNT = secrets.token_hex(6), itertools.count(1)
_RELAY_SECONDS = 1.0

_process: dict[str, str] = {}


def identify(**ids: str) -> None:
    """What this process is: ``process``, ``worker_id``. In each of its events from now on."""
    _process.update(ids)


def request_id(given: str | None) -> str:
    """The caller's own id of a request where it is a plain word, else a new one."""
    return given if given and _ID.fullmatch(given) else f"{_PREFIX}-{next(_COUNT):x}"


def bind(**ids: object) -> None:
    """Puts ids into all events of the present task, and of what it begins (but see ``own_context``)."""
    structlog.contextvars.bind_contextvars(**ids)


def bound(name: str) -> object:
    """An id that the present task is bound to; None: to none."""
    return structlog.contextvars.get_contextvars().get(name)


def own_context() -> contextvars.Context:
    """For work that outlives the request it begins in: its events must not carry that request's ids."""
    context = contextvars.copy_context()
    context.run(structlog.contextvars.clear_contextvars)
    return context


def _add_process(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {**_process, **event} if _process else event


_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    _add_process,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
# Without the values of local variables: a token, a key, or what a job was given may be among them.
_TRACEBACK = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)


class LogFile:
    """Writes each line at once. One that cannot be written (a full disk) is lost, and nobody fails for it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._torn = False

    def write(self, text: str) -> int:
        data = b"\n" * self._torn + text.encode(errors="backslashreplace")
        try:
            # After a part of a line the next one must begin a new one.
            self._torn = os.write(self._fd, data) < len(data)
        except OSError:
            self._torn = True
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


@contextlib.contextmanager
def process(block: LogBlock, **ids: str) -> Iterator[None]:
    """The log of this process, which is what ``ids`` say, is on stderr till the block ends.

    What else is written there, as by gRPC's core of a handshake that failed, are lines of the log too.
    """
    own = LogFile(os.dup(2))
    configure(block, own)
    identify(**ids)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    relay = threading.Thread(target=_relay, args=(reading,), name="stderr", daemon=True)
    relay.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(own.fileno(), 2)  # with this the last writing end is closed
        relay.join(_RELAY_SECONDS)


def _relay(reading: int) -> None:
    stderr = logging.getLogger("stderr")
    with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip():
                stderr.warning("%s", line.rstrip())


def configure(block: LogBlock, stream: TextIO | LogFile) -> None:
    """Sends structlog's events, and what libraries log, to ``stream``."""
    level = logging.getLevelNamesMapping()[block.level.upper()]
    if block.format == "json":
        final: list[structlog.typing.Processor] = [
            structlog.processors.ExceptionRenderer(_TRACEBACK),
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        # By default it shows tracebacks by rich, where that is installed, and with the values of local variables.
        final = [
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    structlog.configure(
        processors=[*_SHARED, *final],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", stream)),
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


def tell_of_faults(loop: asyncio.AbstractEventLoop) -> None:
    """What nobody caught becomes an event too, in this loop and in this process."""
    loop.set_exception_handler(_loop_fault)
    sys.excepthook = _process_fault


def _loop_fault(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # asyncio's message for a callback shows its arguments, which may be anything.
    message = "in a callback" if "handle" in context else str(context.get("message"))
    log.error("loop_fault", reason=message, exc_info=context.get("exception"))


def _process_fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.error("process_failed", exc_info=(kind, error, trace))
