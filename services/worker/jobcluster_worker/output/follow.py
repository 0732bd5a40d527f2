"""Following outputs that grow: one inotify instance for all followers, woken by the index, with no timer and no queue.

A follower holds one window at a time. Whoever consumes it slowly stops its reads, and nobody else's.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress

from jobcluster_worker.output.reader import WINDOW_BYTES, OutputReader
from jobcluster_worker.sandbox import libc

_EVENT = struct.Struct("iIII")
_EVENTS_BYTES = 64 * 1024
_LOST = -1
"""The watch number of "events were lost": the kernel's queue overflowed."""


class IndexWatch:
    """Wakes the followers of an index when it grows. One per event loop."""

    def __init__(self) -> None:
        """Needs a running event loop.

        :raises OSError: if the host gives no inotify instance (fs.inotify.max_user_instances)
        """
        self._fd = libc.inotify_init()
        self._followers: dict[int, set[asyncio.Event]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._wake)

    @property
    def watches(self) -> int:
        """How many indexes are watched."""
        return len(self._followers)

    def close(self) -> None:
        """Ends all watches; nobody is woken any more."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    @contextmanager
    def changes(self, index_fd: int, changed: asyncio.Event | None = None) -> Iterator[asyncio.Event]:
        """An event (the given one, or a new one) that is set whenever the open index has grown; clear it, then look,
        then wait for it.

        :raises OSError: if the host gives no more watches (fs.inotify.max_user_watches)
        """
        changed = changed or asyncio.Event()
        # By descriptor: the path may name another file, or none, by now. The same file has the same watch.
        watch = libc.inotify_add_watch(self._fd, f"/proc/self/fd/{index_fd}", libc.IN_MODIFY)
        followers = self._followers.setdefault(watch, set())
        followers.add(changed)
        try:
            yield changed
        finally:
            followers.discard(changed)
            if not followers and self._followers.pop(watch, None) is not None:
                with suppress(OSError):
                    libc.inotify_rm_watch(self._fd, watch)

    def _wake(self) -> None:
        try:
            events = os.read(self._fd, _EVENTS_BYTES)
        except BlockingIOError:
            return
        position = 0
        while position < len(events):
            watch, _, _, name_bytes = _EVENT.unpack_from(events, position)
            position += _EVENT.size + name_bytes
            woken = self._followers.values() if watch == _LOST else [self._followers.get(watch, set())]
            for followers in woken:
                for changed in followers:
                    changed.set()


async def read_window(reader: OutputReader, offset: int, count: int) -> bytes:
    """Reads from the page cache at once, else in a thread: a slow disk must not stop the event loop.

    :raises OSError: if the output cannot be read
    """
    try:
        return reader.read(offset, count, wait=False)
    except BlockingIOError:
        return await asyncio.to_thread(reader.read, offset, count)


async def follow(
    reader: OutputReader,
    changed: asyncio.Event,
    offset: int,
    limit_bytes: int | None = None,
    abandoned: Callable[[], bool] = lambda: False,
    window: Callable[[], int] = lambda: WINDOW_BYTES,
) -> AsyncGenerator[tuple[int, bytes], None]:
    """Yields (offset, bytes) from ``offset`` on until the output is sealed and all of it was sent, or the limit.

    ``changed`` is the index's event. ``abandoned`` says that nobody will write or seal it any more (a full disk):
    then the end of what is there ends it; whoever knows that must set the event too. ``window``: bytes per piece.

    :raises OSError: if the output cannot be read
    """
    stop_at = None if limit_bytes is None else offset + limit_bytes
    while stop_at is None or offset < stop_at:
        # Cleared and looked for the end before the read: what comes after that wakes us, or is read.
        changed.clear()
        final = reader.sealed() is not None or abandoned()
        count = window() if stop_at is None else min(window(), stop_at - offset)
        data = await read_window(reader, offset, count)
        if data:
            yield offset, data
            offset += len(data)
        elif final:
            return
        else:
            await changed.wait()


async def snapshot(
    reader: OutputReader, offset: int, end: int, window: Callable[[], int] = lambda: WINDOW_BYTES
) -> AsyncGenerator[tuple[int, bytes], None]:
    """Yields (offset, bytes) from ``offset`` to ``end``, a size that the stream has reached.

    :raises OSError: if the output cannot be read
    """
    while offset < end:
        data = await read_window(reader, offset, min(window(), end - offset))
        if not data:
            raise OSError("the output became shorter while it was read")
        yield offset, data
        offset += len(data)
