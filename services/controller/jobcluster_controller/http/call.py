"""One request on its way in: its query, its body, who sent it, and what it would like to get back."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from jobcluster_common.errors import BadRequest, TooLarge, Unavailable
from starlette.requests import Request
from starlette.types import Message, Receive

from ..auth.roles import Role
from ..auth.tokens import name_of
from ..jobs import Caller, Idempotency
from ..schemas.parse import read_json
from .doors import Doors
from .problems import RequestTimeout

BODY_BYTES_MAX = 4 << 20
BODY_SECONDS_MAX = 30.0
# A client that sends before it reads would lose our 413 to a reset; so much, for so long, is read and dropped first.
DROPPED_BYTES_MAX = 64 << 20
DROPPED_SECONDS_MAX = 5.0

_USUAL = ("*/*", "application/*", "application/json")

T = TypeVar("T")


class ClientGone(Exception):
    """The client went away; there is nobody to answer."""


@dataclass(slots=True)
class Call:
    """A request that was let in. ``query`` is the route's query model."""

    request: Request
    doors: Doors
    role: Role | None
    query: Any

    @property
    def caller(self) -> Caller:
        role = self.role or Role.VIEWER
        return Caller(f"{role}:{name_of(self.header('authorization'))}", str(role))

    def path(self, name: str) -> str:
        return str(self.request.path_params[name])

    def header(self, name: str) -> str | None:
        return self.request.headers.get(name)

    async def body(self) -> bytes:
        """The whole body.

        :raises TooLarge: over 4 MiB.
        :raises RequestTimeout: if it does not come.
        """
        declared = self.header("content-length")
        if declared is not None and int(declared) > BODY_BYTES_MAX:
            await self._drop()
            raise TooLarge(f"the body has {declared} bytes; {BODY_BYTES_MAX} are read")
        chunks, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS_MAX):
                while True:
                    message = await self._receive()
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > BODY_BYTES_MAX:
                        break
                    if not message.get("more_body"):
                        return b"".join(chunks)
        except TimeoutError:
            raise RequestTimeout(f"the body did not come within {BODY_SECONDS_MAX:g} s") from None
        chunks.clear()
        await self._drop()
        raise TooLarge(f"the body is larger than {BODY_BYTES_MAX} bytes")

    async def json(self) -> Any:
        """The body's value.

        :raises BadRequest: if it is not JSON; and as ``body``.
        """
        return read_json(await self.body())

    async def _receive(self) -> Message:
        message = await self.request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

    async def _drop(self) -> None:
        if (self.header("expect") or "").lower() == "100-continue":
            return
        dropped = 0
        try:
            async with asyncio.timeout(DROPPED_SECONDS_MAX):
                while dropped < DROPPED_BYTES_MAX:
                    message = await self._receive()
                    dropped += len(message.get("body", b""))
                    if not message.get("more_body"):
                        return
        except TimeoutError:
            return

    def idempotency(self, document: Any) -> Idempotency | None:
        """What its Idempotency-Key says.

        :raises BadRequest: if the key is none.
        """
        key = self.header("idempotency-key")
        if key is None:
            return None
        if not (1 <= len(key) <= 255 and key.isascii() and key.isprintable() and " " not in key):
            raise BadRequest("Idempotency-Key must be 1 to 255 visible ASCII characters")
        canonical = json.dumps(_plain(document), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        return Idempotency(f"{self.request.method} {self.request.url.path}", key, digest)

    def preferred(self, offered: Sequence[str]) -> str | None:
        """Which of ``offered`` the Accept header likes best; None: what the route usually answers with.

        That is meant by wildcards and JSON. Of what is liked as much, a name goes before a wildcard, then the first.
        """
        best, best_rank = None, (0.0, False)
        for part in (self.header("accept") or "").split(","):
            media, *parameters = (p.strip().lower() for p in part.split(";"))
            quality = next((_quality(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
            rank = (quality, "*" not in media)
            if media in (*offered, *_USUAL) and quality > 0 and rank > best_rank:
                best, best_rank = (media if media in offered else None), rank
        return best

    async def waiting(self, work: Coroutine[Any, Any, T]) -> T:
        """Awaits ``work``, unless the client goes away or the controller stops.

        :raises ClientGone: the former.
        :raises Unavailable: the latter.
        """
        try:
            with self.doors.live.entered():
                return await unless_gone(self.request.receive, work)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self.doors.live.closing or task is None:
                raise
            task.uncancel()
            raise Unavailable("the controller is stopping") from None


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Awaits ``work``; when the client goes away first, cancels it.

    :raises ClientGone: then.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _plain(value: Any) -> Any:
    """In canonical JSON (RFC 8785) 5.0 is 5."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
