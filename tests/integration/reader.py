"""A reader of one output in one form, which resumes after every cut. Stdlib only: it also runs as a process of its own.

``python reader.py HTTPS_PORT CA_FILE TOKEN JOB_ID FORM`` prints a line when the first bytes are there, then its reading
as JSON.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

RAW, EVENTS, LINES = "application/octet-stream", "text/event-stream", "application/x-ndjson"
FORMS = (RAW, EVENTS, LINES)

_BROKEN = (http.client.HTTPException, OSError)
_AGAIN = (503,)


class Refused(Exception):
    """An answer that asking again would not change."""


@dataclass
class Reading:
    """What one reader has seen: so many bytes with this hash, and how often it had to come back."""

    offset: int = 0
    began: bool = False
    cuts: int = 0
    end: dict[str, Any] | None = None
    cursor: str | None = None
    hash: Any = field(default_factory=hashlib.sha256)

    @property
    def sha256(self) -> str:
        return str(self.hash.hexdigest())

    def take(self, data: bytes, offset: int) -> None:
        if offset != self.offset:
            raise AssertionError(f"offset {offset} came after {self.offset}: a gap or a repeat")
        self.hash.update(data)
        self.offset += len(data)


@dataclass(frozen=True)
class Reader:
    """``began`` is called once, at the first byte. ``timeout_seconds``: silence for so long is a cut."""

    port: int
    ca_file: str
    token: str
    job_id: str
    form: str = RAW
    stream: str = "merged"
    timeout_seconds: float = 60.0
    began: Callable[[], None] = lambda: None

    def read(self, own_cuts: Sequence[int] = (), within: float = 110.0) -> Reading:
        """To the end, however often it takes. At each of ``own_cuts`` (bytes seen in all) it cuts itself."""
        reading, deadline, cuts = Reading(), time.monotonic() + within, iter(own_cuts)
        own_cut = next(cuts, None)
        while True:
            try:
                if self._attempt(reading, own_cut):
                    return reading
                own_cut = next(cuts, None)
            except _BROKEN:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)  # not a wait for a state: a client's pause before it asks again
            reading.cuts += 1

    def _attempt(self, reading: Reading, own_cut: int | None) -> bool:
        """True at the end, False when it cut itself."""
        context = ssl.create_default_context(cafile=self.ca_file)
        connection = http.client.HTTPSConnection(
            "localhost", self.port, context=context, timeout=self.timeout_seconds
        )
        try:
            connection.request("GET", *self._request(reading))
            answer = connection.getresponse()
            if answer.status in _AGAIN:
                raise http.client.HTTPException(f"status {answer.status}")
            if answer.status != 200:
                raise Refused(f"status {answer.status}: {answer.read()!r}")
            return self._follow(answer, reading, own_cut)
        finally:
            connection.close()

    def _request(self, reading: Reading) -> tuple[str, None, dict[str, str]]:
        path = f"/v1/jobs/{self.job_id}/output?follow=true&stream={self.stream}"
        headers = {"Authorization": f"Bearer {self.token}", "Accept": self.form}
        if self.form == EVENTS and reading.cursor is not None:
            headers["Last-Event-ID"] = reading.cursor
        else:
            path += f"&offset={reading.offset}"
        return path, None, headers

    def _follow(self, answer: http.client.HTTPResponse, reading: Reading, own_cut: int | None) -> bool:
        take = {RAW: self._bytes, EVENTS: self._event, LINES: self._line}[self.form]
        blocks = {RAW: None, EVENTS: b"\n\n", LINES: b"\n"}[self.form]
        left = b""
        while data := answer.read1(65536):
            if not reading.began:
                reading.began = True
                self.began()
            if blocks is None:
                take(reading, data)
            else:
                *whole, left = (left + data).split(blocks)
                for block in whole:
                    take(reading, block)
            if own_cut is not None and reading.offset >= own_cut:
                return False
        if self.form != RAW and reading.end is None:
            raise AssertionError("the answer ended in good order, and told no end")
        return True

    def _bytes(self, reading: Reading, data: bytes) -> None:
        reading.take(data, reading.offset)

    def _line(self, reading: Reading, line: bytes) -> None:
        document = json.loads(line)
        if "base64" in document:
            self._check(document)
            reading.take(base64.b64decode(document["base64"]), document["offset"])
        else:
            reading.end = document

    def _event(self, reading: Reading, block: bytes) -> None:
        if block.startswith(b":"):
            return
        fields = dict(line.split(": ", 1) for line in block.decode().split("\n"))
        if fields["event"] == "output":
            document = json.loads(fields["data"])
            self._check(document)
            reading.take(base64.b64decode(document["base64"]), document["offset"])
            reading.cursor = fields["id"]
        else:
            assert fields["event"] == "end", fields
            reading.end = json.loads(fields["data"])

    def _check(self, document: dict[str, Any]) -> None:
        if document["stream"] != self.stream:
            raise AssertionError(f"asked for {self.stream}, got {document['stream']}")


def main() -> None:
    port, ca_file, token, job_id, form = sys.argv[1:]

    def began() -> None:
        sys.stdout.write("began\n")
        sys.stdout.flush()

    reading = Reader(int(port), ca_file, token, job_id, form, began=began).read(within=1500.0)
    told = {"bytes": reading.offset, "sha256": reading.sha256, "cuts": reading.cuts, "end": reading.end}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
