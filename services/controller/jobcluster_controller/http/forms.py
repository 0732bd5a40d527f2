"""The forms of output: server-sent events, JSON lines, and text; each is made of the same items, one at a time."""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, Protocol

from jobcluster_common.errors import BadRequest

from ..domain.query import OutputChunk
from ..schemas.requests import STREAMS

EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
TEXT = "text/plain"
RAW = "application/octet-stream"

LINE_BYTES_MAX = 64 << 10


class Form(Protocol):
    """How items become bytes."""

    heartbeat: bytes
    """What shows that a silent stream lives; empty: nothing can."""

    def job(self, document: Mapping[str, Any]) -> bytes: ...
    def output(self, rank: int, chunk: OutputChunk) -> bytes: ...
    def end(self, document: Mapping[str, Any]) -> bytes: ...


class Events:
    """text/event-stream. Each output event's id is a cursor: where each task's stream goes on after it."""

    heartbeat = b": alive\n\n"

    def __init__(self, job_id: str, stream: str, offsets: dict[int, int]) -> None:
        self._job_id = job_id
        self._stream = stream
        self._offsets = dict(offsets)

    def job(self, document: Mapping[str, Any]) -> bytes:
        return b"event: job\ndata: " + _json(document) + b"\n\n"

    def output(self, rank: int, chunk: OutputChunk) -> bytes:
        self._offsets[rank] = chunk.offset + len(chunk.data)
        cursor = write_cursor(self._job_id, self._stream, self._offsets)
        return b"id: %b\nevent: output\ndata: %b\n\n" % (cursor.encode(), _chunk(rank, self._stream, chunk))

    def end(self, document: Mapping[str, Any]) -> bytes:
        return b"event: end\ndata: " + _json(document) + b"\n\n"


class Lines:
    """application/x-ndjson: the same data, one a line."""

    heartbeat = b""

    def __init__(self, stream: str) -> None:
        self._stream = stream

    def job(self, document: Mapping[str, Any]) -> bytes:
        return _json(document) + b"\n"

    def output(self, rank: int, chunk: OutputChunk) -> bytes:
        return _chunk(rank, self._stream, chunk) + b"\n"

    def end(self, document: Mapping[str, Any]) -> bytes:
        return _json(document) + b"\n"


class Bytes:
    """The output as it is."""

    heartbeat = b""

    def job(self, document: Mapping[str, Any]) -> bytes:
        return b""

    def output(self, rank: int, chunk: OutputChunk) -> bytes:
        return chunk.data

    def end(self, document: Mapping[str, Any]) -> bytes:
        return b""


class RankedText(Bytes):
    """Several tasks' output as lines, each after its ``[rank] ``. A line longer than 64 KiB comes in pieces."""

    def __init__(self) -> None:
        self._begun: dict[int, bytes] = {}

    def output(self, rank: int, chunk: OutputChunk) -> bytes:
        *whole, rest = (self._begun.pop(rank, b"") + chunk.data).split(b"\n")
        while len(rest) >= LINE_BYTES_MAX:
            whole.append(rest[:LINE_BYTES_MAX])
            rest = rest[LINE_BYTES_MAX:]
        if rest:
            self._begun[rank] = rest
        return b"".join(b"[%d] %b\n" % (rank, line) for line in whole)

    def end(self, document: Mapping[str, Any]) -> bytes:
        return b"".join(b"[%d] %b\n" % (rank, line) for rank, line in sorted(self._begun.items()))


def write_cursor(job_id: str, stream: str, offsets: Mapping[int, int]) -> str:
    """Opaque to callers; for us: of which job, and where to go on. The last dot tells a whole one from a stump."""
    pairs = (f"{rank}:{offset}" for rank, offset in sorted(offsets.items()))
    return urlsafe_b64encode(" ".join((_mark(job_id), stream, *pairs, ".")).encode()).decode().rstrip("=")


def read_cursor(cursor: str, job_id: str, stream: str) -> dict[int, int]:
    """The offsets of a ``Last-Event-ID``.

    :raises BadRequest: if it is none of ours, or of another job or stream.
    """
    try:
        text = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)).decode("ascii")
        mark, of, *pairs, dot = text.split(" ")
        offsets = {int(rank): int(offset) for rank, offset in (pair.split(":") for pair in pairs)}
    except ValueError:
        raise BadRequest("Last-Event-ID is not an id of this stream") from None
    good = all(rank >= 0 and 0 <= offset < 2**63 for rank, offset in offsets.items())
    if of not in STREAMS or dot != "." or not good:
        raise BadRequest("Last-Event-ID is not an id of this stream")
    if mark != _mark(job_id):
        raise BadRequest("Last-Event-ID is of another job's output")
    if of != stream:
        raise BadRequest(f"Last-Event-ID is of ?stream={of}, not {stream}")
    return offsets


def _mark(job_id: str) -> str:
    return job_id.partition("-")[0]


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _chunk(rank: int, stream: str, chunk: OutputChunk) -> bytes:
    return b'{"task":%d,"stream":"%b","offset":%d,"base64":"%b"}' % (
        rank,
        stream.encode(),
        chunk.offset,
        binascii.b2a_base64(chunk.data, newline=False),
    )
