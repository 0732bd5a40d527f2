"""A cheap HTTP/1.1 client on asyncio: on few cores a rich one would be most of what is measured."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Target:
    """Where to ask, and as whom. ``context`` None = plain HTTP."""

    url: str
    token: str = ""
    context: ssl.SSLContext | None = None

    @classmethod
    def of(cls, url: str, ca_file: Path, token: str) -> Target:
        return cls(url, token, ssl.create_default_context(cafile=str(ca_file)))


class Connection:
    """One kept-alive connection: one request at a time."""

    def __init__(self, target: Target) -> None:
        self._target = target
        parts = urlsplit(target.url)
        self._host, self._port = parts.hostname or "", parts.port or 443
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection(
            self._host, self._port, ssl=self._target.context, limit=1 << 20
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    async def send(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str]]:
        """Sends a request; the status and headers of its answer (names in lower case)."""
        reader, writer = self._streams()
        payload = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}:{self._port}"]
        if self._target.token:
            lines.append(f"Authorization: Bearer {self._target.token}")
        if payload:
            lines += ["Content-Type: application/json", f"Content-Length: {len(payload)}"]
        writer.write("\r\n".join([*lines, "", ""]).encode() + payload)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in head[1:] if line)}
        return int(head[0].split()[1]), headers

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """One request with a body of known length in its answer."""
        status, headers = await self.send(method, path, body)
        return status, await self._streams()[0].readexactly(int(headers["content-length"]))

    async def job(self, path: str) -> dict[str, Any]:
        """A job, asked for at ``path``."""
        status, body = await self.call("GET", path)
        if status != 200:
            raise RuntimeError(f"GET {path}: {status}")
        job: dict[str, Any] = json.loads(body)
        return job

    async def next_chunk(self) -> bytes:
        """The next chunk of an answer whose headers were read; empty at its end."""
        reader, _ = self._streams()
        size = int(await reader.readline(), 16)
        return (await reader.readexactly(size + 2))[:size]

    def stall(self) -> None:
        """Takes nothing more from the socket."""
        cast(asyncio.Transport, self._streams()[1].transport).pause_reading()

    def _streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            raise RuntimeError("the connection is not open")
        return self._reader, self._writer
