"""Log lines of launcher and supervisors, in the form of all others: JSON or for people, on stderr. Stdlib only.

The names of events are those of jobcluster_common.events, which cannot be imported here; a test holds the two together.
"""

from __future__ import annotations

import datetime
import json
import os
import select
import sys
import traceback

_LEVELS = ("debug", "info", "warning", "error")
_ROOMS = (2000, 300, 30)

_ids: dict[str, object] = {"process": "launcher"}
_form = "json"
_least = _LEVELS.index("info")


def configure(form: str, level: str) -> None:
    """``form`` is json or console; lines below ``level`` are not written."""
    global _form, _least
    _form, _least = form, _LEVELS.index(level)


def identify(**ids: object) -> None:
    """What this process is; in each of its lines from now on."""
    _ids.update(ids)


def note(event: str, level: str = "info", **fields: object) -> None:
    """Writes one line; a stderr that is gone, or a pipe that nobody reads, is no reason to fail or to wait."""
    if _LEVELS.index(level) < _least:
        return
    line = _line({**_ids, **fields, "event": event, "level": level, "timestamp": _now()})
    try:
        fd = sys.stderr.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        # A pipe that polls as writable takes so much at once (pipe(7)); a line that it cannot take is dropped.
        if poll.poll(0):
            os.write(fd, line)
    except (OSError, ValueError, AttributeError):
        return


def note_fault(error: BaseException) -> None:
    """An error that nobody expected, with its way but without any value of a variable."""
    way = traceback.format_exception(error, limit=-4)
    note("callback_failed", "error", reason=f"{type(error).__name__}: {error}", exception="".join(way))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _line(fields: dict[str, object]) -> bytes:
    """Whole in itself, however long its texts are: they are cut, never the line."""
    for room in _ROOMS:
        cut = {key: value[:room] if isinstance(value, str) else value for key, value in fields.items()}
        line = (_console(cut) if _form == "console" else json.dumps(cut, default=str)).encode() + b"\n"
        if len(line) <= select.PIPE_BUF:
            break
    return line[: select.PIPE_BUF]


def _console(fields: dict[str, object]) -> str:
    timestamp, level, event = (fields.pop(key) for key in ("timestamp", "level", "event"))
    rest = " ".join(f"{key}={_word(value)}" for key, value in sorted(fields.items()))
    return f"{timestamp} [{level:<9}] {event:<30} {rest}"


def _word(value: object) -> str:
    return value if isinstance(value, str) and value.isprintable() and " " not in value else repr(value)
