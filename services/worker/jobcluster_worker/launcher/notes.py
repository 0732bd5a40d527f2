"""Log lines of launcher and supervisors: JSON on stderr, event names from the list below. Stdlib only."""

from __future__ import annotations

import datetime
import json
import os
import select
import sys
from typing import Literal

Event = Literal[
    "launcher_started",
    "launcher_stopping",
    "launcher_stopped",
    "server_started",
    "server_ended",
    "server_hung",
    "supervisor_started",
    "supervisor_ended",
    "supervisor_lost",
    "run_directory_remade",
    "not_enforced",
    "task_unkillable",
    "task_fault",
    "end_not_written",
    "output_not_sealed",
    "connection_dropped",
    "leaf_not_removed",
    "callback_failed",
]


def note(event: Event, level: str = "info", **fields: object) -> None:
    """Writes one line; a stderr that is gone, or a pipe that nobody reads, is no reason to fail or to wait."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = json.dumps({"timestamp": now, "level": level, "event": event, **fields}, default=str) + "\n"
    try:
        fd = sys.stderr.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        # A pipe that polls as writable takes so much at once (pipe(7)); a line that it cannot take is dropped.
        if poll.poll(0):
            os.write(fd, _cut(line.encode()))
    except (OSError, ValueError, AttributeError):
        return


def _cut(line: bytes) -> bytes:
    return line if len(line) <= select.PIPE_BUF else line[: select.PIPE_BUF - 1] + b"\n"
