"""GET /v1/events: what changes in the cluster, as server-sent events that can be resumed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from jobcluster_common.errors import BadRequest
from starlette.types import ASGIApp

from ..events import AT_ONCE, Change, JobChange
from ..schemas.render import job_change_document, worker_document
from .call import Call
from .doors import Doors
from .forms import EVENTS
from .live import LiveStream
from .output import content_type, need_chunks

HEARTBEAT = b": alive\n\n"
_ID = re.compile(r"([0-9a-f]{16})-([0-9]{1,18})")


async def get_events(call: Call) -> ASGIApp:
    """Changes of jobs and workers

    Server-sent events: first the jobs that have not ended and the workers as they are, an event "current", then
    changes as they come. With Last-Event-ID it goes on after that event; where those in between are no longer known,
    or are of another start of the controller, it says so by an event "reset" and begins with the present again.
    """
    need_chunks(call)
    position = read_id(call.doors, call.header("last-event-id"))
    return LiveStream(call.doors, _stream(call.doors, position), content_type(EVENTS))


def read_id(doors: Doors, given: str | None) -> int | None:
    """The number in a ``Last-Event-ID``; None: there is none; -1: it is of another start.

    :raises BadRequest: if it is no id of ours.
    """
    if not given:
        return None
    match = _ID.fullmatch(given)
    if match is None:
        raise BadRequest("Last-Event-ID is not an id of this stream")
    return int(match[2]) if match[1] == doors.events.start else -1


async def _stream(doors: Doors, position: int | None) -> AsyncGenerator[bytes, None]:
    events = doors.events
    while True:
        found = None if position is None else events.after(position)
        if position is None or found is None:
            if position is not None:
                yield _event("reset", {"reason": "events since that id are no longer known"})
            # Jobs and workers are read in one turn of the loop: the position is the one they stand for.
            position, present = events.last, _present(doors)
            while present:
                yield b"".join(_change(doors, change) for change in present[:AT_ONCE])
                del present[:AT_ONCE]
            # Only now an id: who breaks off before begins again, and misses nothing.
            yield _event("current", {}, f"{events.start}-{position}")
        elif found:
            yield b"".join(_change(doors, e.change, f"{events.start}-{e.number}") for e in found)
            position = found[-1].number
        else:
            try:
                async with asyncio.timeout(doors.heartbeat_seconds):
                    await events.came(position)
            except TimeoutError:
                yield HEARTBEAT


def _present(doors: Doors) -> list[Change]:
    return [*doors.registry.list(), *(JobChange.of(job) for job in doors.jobs.active())]


def _change(doors: Doors, change: Change, event_id: str | None = None) -> bytes:
    if isinstance(change, JobChange):
        return _event("job", job_change_document(change), event_id)
    return _event("worker", worker_document(change, doors.registry.running(change.worker_id)), event_id)


def _event(name: str, document: Mapping[str, Any], event_id: str | None = None) -> bytes:
    data = json.dumps(document, separators=(",", ":")).encode()
    head = b"" if event_id is None else b"id: %b\n" % event_id.encode()
    return head + b"event: %b\ndata: %b\n\n" % (name.encode(), data)
