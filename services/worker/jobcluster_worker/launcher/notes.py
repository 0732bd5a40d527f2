"""Log lines of launcher and supervisors: JSON on stderr, event names from the list below. Stdlib only."""

from __future__ import annotations

import datetime
import json
import os
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
]


def note(event: Event, level: str = "info", **fields: object) -> None:
    """Writes one line; a stderr that is gone is no reason to fail."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = json.dumps({"timestamp": now, "level": level, "event": event, **fields}, default=str) + "\n"
    try:
        os.write(sys.stderr.fileno(), line.encode())
    except (OSError, ValueError, AttributeError):
        return
