"""The writing end of a task's output: what its supervisor reads from the pipes goes to data file and index."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from jobcluster_worker.output.hashes import StreamHashes
from jobcluster_worker.output.index import HEADER, NOTHING, RECORD_BYTES, STDERR, STDOUT, Record, pack_end
from jobcluster_worker.sandbox import libc

DATA_NAME = "output"
INDEX_NAME = "index"

FLUSH_SECONDS = 0.002
"""Records of one task are written at most this often, so that tiny writes do not outgrow the data."""

INDEX_ALLOWANCE = 1 << 20
"""Bytes of index not counted in the cap: an ordinary task keeps exactly ``max_bytes`` of its output."""

_RETRY_SECONDS = 1.0
# Room for the last records and the end, taken beforehand: they must be told on a full disk too.
_RESERVE_BYTES = 4096
_END_BYTES = 3072
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC

Write = Callable[[int, "bytes | memoryview"], int]


class OutputLog:
    """Keeps the head of a task's output, at most ``max_bytes`` with the index beyond its allowance counted.

    What comes after a byte that could not be kept (cap, full disk) is dropped and counted: there is no hole.
    Not thread-safe. Times are on the monotonic clock, in seconds.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_bytes: int,
        on_limit: str = "truncate",
        os_write: Write = os.write,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Makes ``output`` and ``index`` in ``directory``, mode 0600.

        :raises FileExistsError: if there is an output already
        :raises OSError: if the files cannot be made; none is left then
        """
        self.max_bytes = max_bytes
        self.on_limit = on_limit
        self.limited = False
        self.error: OSError | None = None
        self.dropped_bytes = 0
        self._os_write = os_write
        self._wall_clock_ns = wall_clock_ns
        self._end = NOTHING
        """The ends of the streams, with the records that are still pending."""
        self._open_kind: int | None = None
        """The kind of the run that has data and no record yet."""
        self._pending = bytearray()
        self._index_bytes = len(HEADER)
        self._last_flush = float("-inf")
        self._hashes = StreamHashes()
        self._data_fd, self._index_fd = _create(directory, os_write)
        self._reserved_bytes = _RESERVE_BYTES

    @property
    def must_stop(self) -> bool:
        """Whether the task is to be ended because its output reached the cap."""
        return self.limited and self.on_limit == "stop"

    @property
    def next_flush(self) -> float | None:
        """When ``flush`` is to be called, None if nothing waits for it."""
        if self._open_kind is None and not self._pending:
            return None
        return self._last_flush + (_RETRY_SECONDS if self.error else FLUSH_SECONDS)

    def write(self, kind: int, data: bytes | memoryview, now: float) -> None:
        """Appends ``data`` of ``kind`` (STDOUT or STDERR), or counts it as dropped. Never raises OSError."""
        view = memoryview(data)
        kept = 0
        if not self.limited and self.error is None:
            room = self._room(kind)
            if room < len(view):
                self.limited = True
            kept = self._append(view[: max(0, room)])
        if kept:
            self._hashes.update(kind, view[:kept])
            self._extend(kind, kept)
        self.dropped_bytes += len(view) - kept
        due = self.next_flush
        if due is not None and now >= due:
            self.flush(now)

    def flush(self, now: float) -> None:
        """Writes the records that wait. On a full disk they wait on, and ``next_flush`` says till when."""
        self._close_run()
        self._last_flush = now
        self._write_pending()

    def totals(self) -> dict[str, object]:
        """Bytes and sha256 of each stream as kept, and how many bytes were dropped."""
        return {
            "merged": {"bytes": self._end.merged_end, "sha256": self._hashes.merged()},
            "stdout": {"bytes": self._end.stdout_end, "sha256": self._hashes.of(STDOUT)},
            "stderr": {"bytes": self._end.stderr_end, "sha256": self._hashes.of(STDERR)},
            "dropped_bytes": self.dropped_bytes,
        }

    def seal(self, task: Mapping[str, object]) -> None:
        """Writes what waits, then the end: from now on readers know that nothing follows.

        :raises OSError: if it could not be written; ``recover`` makes it good later
        """
        self._close_run()
        try:
            self._write_index(bytes(self._pending))
            self._pending.clear()
            self._write_index(pack_end(self._end, self._now_us(), dict(task)))
        except OSError as error:
            self.error = self.error or error
            raise
        if self._reserved_bytes > _RESERVE_BYTES:
            with contextlib.suppress(OSError):  # what was not needed is given back
                os.ftruncate(self._index_fd, self._index_bytes)

    def close(self) -> None:
        """Closes the files. Again, it does nothing."""
        for fd in (self._data_fd, self._index_fd):
            if fd >= 0:
                os.close(fd)
        self._data_fd = self._index_fd = -1

    def _room(self, kind: int) -> int:
        index = self._index_bytes + len(self._pending)
        if self._open_kind is not None:
            index += RECORD_BYTES
        if self._open_kind != kind:
            index += RECORD_BYTES
        return self.max_bytes - self._end.merged_end - max(0, index - INDEX_ALLOWANCE)

    def _append(self, view: memoryview) -> int:
        done = 0
        while done < len(view):
            try:
                done += self._os_write(self._data_fd, view[done:])
            except OSError as error:
                self.error = error
                break
        return done

    def _extend(self, kind: int, count: int) -> None:
        if self._open_kind != kind:
            self._close_run()
        self._open_kind = kind
        last = self._end
        self._end = Record(
            last.merged_end + count,
            last.stdout_end + (count if kind == STDOUT else 0),
            last.stderr_end + (count if kind == STDERR else 0),
            0,
            kind,
        )

    def _close_run(self) -> None:
        if self._open_kind is None:
            return
        end = self._end
        self._pending += Record(
            end.merged_end, end.stdout_end, end.stderr_end, self._now_us(), self._open_kind
        ).pack()
        self._open_kind = None

    def _write_pending(self) -> None:
        if not self._pending:
            return
        try:
            self._write_index(bytes(self._pending))
        except OSError as error:
            self.error = self.error or error
            return
        self._pending.clear()
        if self._reserved_bytes - self._index_bytes < _END_BYTES:
            self._reserve()

    def _write_index(self, data: bytes) -> None:
        """All or nothing: a part of a record would put every later one out of step."""
        done = 0
        try:
            while done < len(data):
                done += self._os_write(self._index_fd, memoryview(data)[done:])
        except OSError:
            if done:
                os.ftruncate(self._index_fd, self._index_bytes)
            raise
        self._index_bytes += done

    def _reserve(self) -> None:
        """Two more blocks at a time. Without them nothing more is kept, so that what is left of them is the end's."""
        wanted = (self._index_bytes // _RESERVE_BYTES + 2) * _RESERVE_BYTES
        try:
            libc.reserve(self._index_fd, self._index_bytes, wanted - self._index_bytes)
        except OSError as error:
            if error.errno in _FULL:
                self.error = self.error or error
                return
            # A file system that cannot reserve: the end is tried all the same.
        self._reserved_bytes = wanted

    def _now_us(self) -> int:
        return self._wall_clock_ns() // 1000


def _create(directory: Path, os_write: Write) -> tuple[int, int]:
    """Makes both files and returns their descriptors (data, index)."""
    data_path, index_path = directory / DATA_NAME, directory / INDEX_NAME
    data_fd = os.open(data_path, _CREATE, 0o600)
    try:
        index_fd = os.open(index_path, _CREATE, 0o600)
        try:
            if os_write(index_fd, HEADER) != len(HEADER):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(index_path))
            _take_first_block(index_fd)
        except OSError:
            os.close(index_fd)
            index_path.unlink()
            raise
    except OSError:
        os.close(data_fd)
        data_path.unlink()
        raise
    return data_fd, index_fd


def _take_first_block(index_fd: int) -> None:
    # The first bytes of a file take its first block whole; where blocks are small, more than one is needed.
    if os.fstat(index_fd).st_blksize < _RESERVE_BYTES:
        try:
            libc.reserve(index_fd, 0, _RESERVE_BYTES)
        except OSError as error:
            if error.errno in _FULL:
                raise
