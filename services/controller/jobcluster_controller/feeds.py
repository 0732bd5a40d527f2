"""Followed outputs, shared: readers at about the same place of one output are served by one stream of its worker."""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable

from jobcluster_common.errors import JobclusterError

from .domain.query import OutputChunk, OutputCut, OutputEnd, OutputItem, OutputStart

RETAINED_BYTES = 2 << 20
"""All feeds together keep so much, for readers that are a little behind."""
PIECES_BYTES = 1 << 20
"""All readers together are given about so much at a time: each holds its piece, in several forms, until it is sent."""
PIECE_BYTES_MIN, PIECE_BYTES_MAX = 16 << 10, 256 << 10
IDLE_SECONDS = 1.0

Key = tuple[str, str, int, int, str]
"""Whose output: worker, job, rank, attempt, stream."""
Open = Callable[[int], AsyncGenerator[OutputItem]]
"""Opens a followed stream of the worker at an offset."""


class Feeds:
    """All feeds of the process. A reader that falls behind its feed goes on in another one, at its own place."""

    def __init__(self) -> None:
        self._feeds: dict[Key, list[_Feed]] = {}
        self._readers = 0
        self._count = 0

    async def follow(self, key: Key, offset: int, open_at: Open) -> AsyncGenerator[OutputItem]:
        """What ``open_at(offset)`` gives, in pieces of our own size.

        :raises OutputCut: if it breaks off. What ``open_at`` raises at its first item is raised as it is.
        """
        self._readers += 1
        begun = False
        try:
            while True:
                async with self._joined(key, offset, open_at) as feed:
                    if not begun and (start := await feed.start(offset)):
                        begun = True
                        yield start
                    while begun and (item := await feed.next(offset, self._piece_bytes())):
                        yield item
                        if isinstance(item, OutputEnd):
                            return
                        offset += len(item.data)
        except (OutputCut, JobclusterError) as error:
            if not begun:
                raise
            raise OutputCut(offset, error.why if isinstance(error, OutputCut) else str(error)) from error
        finally:
            self._readers -= 1

    def share(self) -> int:
        """Bytes that one feed may keep, now that there are so many."""
        return RETAINED_BYTES // max(1, self._count)

    def _piece_bytes(self) -> int:
        return max(PIECE_BYTES_MIN, min(PIECE_BYTES_MAX, PIECES_BYTES // max(1, self._readers)))

    @contextlib.asynccontextmanager
    async def _joined(self, key: Key, offset: int, open_at: Open) -> AsyncGenerator[_Feed]:
        feeds = self._feeds.setdefault(key, [])
        feed = next((f for f in feeds if f.has(offset)), None)
        if feed is None:
            feed = _Feed(open_at(offset), offset, self.share)
            feeds.append(feed)
            self._count += 1
        feed.members += 1
        try:
            yield feed
        finally:
            feed.members -= 1
            if feed.members == 0:
                feeds.remove(feed)
                self._count -= 1
                if not feeds and self._feeds.get(key) is feeds:
                    del self._feeds[key]
                await feed.close()


class _Feed:
    """One stream of a worker and its readers. It is read when a reader wants more, and given up when none does.

    So readers that have all stalled hold nothing here and nothing in the worker.
    """

    def __init__(self, items: AsyncGenerator[OutputItem], offset: int, share: Callable[[], int]) -> None:
        self.members = 0
        self._items = items
        self._share = share
        self._pieces: list[OutputChunk] = []
        self._begin = self._end = offset
        self._start: OutputStart | None = None
        self._last: OutputEnd | None = None
        self._error: Exception | None = None
        self._closed = self._idle = False
        self._reading = True
        self._timer: asyncio.TimerHandle | None = None
        self._wanted, self._news = asyncio.Event(), asyncio.Event()
        self._asked_at = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._run(), name="feed")

    def has(self, offset: int) -> bool:
        """Whether a reader at ``offset`` can be served from here."""
        return not self._closed and self._error is None and self._begin <= offset <= self._end

    async def start(self, offset: int) -> OutputStart | None:
        """How the stretch from ``offset`` begins; None: it has to be asked for elsewhere."""
        while self._start is None and not self._closed:
            self._fail()
            await self._news.wait()
        if self._start is None or not self.has(offset):
            return None
        return OutputStart(offset, max(self._start.size_bytes, self._end), self._start.complete)

    async def next(self, offset: int, count: int) -> OutputChunk | OutputEnd | None:
        """At most ``count`` bytes from ``offset``, or the end; None: the reader fell behind what is kept."""
        self._asked_at = asyncio.get_running_loop().time()
        while not self._closed and offset >= self._begin:
            if offset < self._end:
                return self._piece(offset, count)
            if self._last is not None:
                return self._last
            self._fail()
            self._wanted.set()
            await self._news.wait()
        return None

    async def close(self) -> None:
        self._closed = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _fail(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)  # one for all readers: it would collect their tracebacks

    def _piece(self, offset: int, count: int) -> OutputChunk:
        if offset + count >= self._end:
            self._wanted.set()  # the next is fetched while this one is sent
        piece = self._pieces[bisect_right(self._pieces, offset, key=lambda p: p.offset) - 1]
        at = offset - piece.offset
        if at == 0 and len(piece.data) <= count:
            return piece
        return OutputChunk(piece.data[at : at + count], offset)

    async def _run(self) -> None:
        try:
            try:
                await self._read()
            except Exception as error:
                self._error = error
                self._asked_at = asyncio.get_running_loop().time()
            self._tell()
            # Who is a little behind still gets what is kept, and the end.
            while (self._last or self._error) and await self._more():
                self._wanted.clear()
        finally:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            self._pieces.clear()
            self._tell()

    async def _read(self) -> None:
        """To the end, or until nobody wants more."""
        async with contextlib.aclosing(self._items) as items:
            async for item in items:
                # Who waited for it has asked all the while.
                self._asked_at = asyncio.get_running_loop().time()
                if isinstance(item, OutputChunk):
                    self._keep(item)
                    self._wanted.clear()
                elif isinstance(item, OutputStart):
                    self._start = item
                else:
                    self._last = item
                    return
                self._tell()
                if not await self._more():
                    return

    def _keep(self, piece: OutputChunk) -> None:
        self._pieces.append(piece)
        self._end = piece.offset + len(piece.data)
        while len(self._pieces) > 1 and self._end - self._begin > self._share():
            del self._pieces[0]
            self._begin = self._pieces[0].offset

    async def _more(self) -> bool:
        """Waits until more is wanted; False: nobody has asked for anything for a while."""
        if not self._wanted.is_set():
            if self._timer is None:
                self._look_again()
            self._reading = False
            await self._wanted.wait()
            self._reading = True
        return not self._idle

    def _look_again(self) -> None:
        """One timer for all waits: to make and cancel one for each piece would cost more than the piece."""
        loop = asyncio.get_running_loop()
        left = self._asked_at + IDLE_SECONDS - loop.time()
        if left <= 0 and not self._reading:
            self._idle = True
            self._wanted.set()
            return
        self._timer = loop.call_later(left if left > 0 else IDLE_SECONDS, self._look_again)

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
