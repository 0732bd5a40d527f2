"""The reading end of a task's output, while it grows or later: any stream from any offset, a window at a time."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from jobcluster_worker.output.index import MERGED_STREAM, STDERR, STDOUT, STREAMS, IndexReader
from jobcluster_worker.output.log import DATA_NAME, INDEX_NAME

WINDOW_BYTES = 256 * 1024
"""The most that one read returns, and holds."""

_RECORDS_AT_ONCE = 128


class OutputReader:
    """One stream ("merged", "stdout" or "stderr") of a task's output. Offsets are bytes of that very stream.

    Only indexed bytes are shown, so that what was read once never changes.
    """

    def __init__(self, directory: Path, stream: str = MERGED_STREAM) -> None:
        """Opens the output in ``directory``.

        :raises FileNotFoundError: if there is none
        :raises ValueError: if there is no such stream
        :raises DamagedIndex: if its index is none
        """
        if stream not in STREAMS:
            raise ValueError(f"stream {stream!r} is none of {', '.join(STREAMS)}")
        self.stream = stream
        self._kind = STDERR if stream == "stderr" else STDOUT
        self._hint = 0
        """The record at which the last read ended: the next one most often goes on there."""
        self._nowait = hasattr(os, "RWF_NOWAIT")
        self._data_fd = os.open(directory / DATA_NAME, os.O_RDONLY | os.O_CLOEXEC)
        try:
            index_fd = os.open(directory / INDEX_NAME, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._index = IndexReader(index_fd)
            except BaseException:
                os.close(index_fd)
                raise
        except BaseException:
            os.close(self._data_fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files. Again, it does nothing."""
        if self._data_fd >= 0:
            os.close(self._data_fd)
            self._index.close()
            self._data_fd = -1

    @property
    def index_fd(self) -> int:
        """The index's descriptor, to be watched for changes."""
        return self._index.fd

    def size(self) -> int:
        """The stream's size in bytes, as of now."""
        return self._index.last().end_of(self.stream)

    def sizes(self) -> dict[str, int]:
        """The size of each stream in bytes, all as of one moment."""
        last = self._index.last()
        return {stream: last.end_of(stream) for stream in STREAMS}

    def sealed(self) -> dict[str, object] | None:
        """The ended task once its output is final, else None."""
        return self._index.end()

    def read(self, offset: int, count: int, *, wait: bool = True) -> bytes:
        """At most ``count`` bytes (and a window) from ``offset``; fewer is normal, none is the present end.

        With ``wait=False`` only what the page cache has: the disk is never waited for.

        :raises BlockingIOError: with ``wait=False``, if the disk would have to be waited for
        :raises OSError: if the output cannot be read
        """
        count = min(count, WINDOW_BYTES)
        if self.stream != MERGED_STREAM:
            return self._read_part(offset, count, wait)
        count = min(count, self.size() - offset)
        return self._read_data(offset, count, wait) if count > 0 else b""

    def tail_offset(self, lines: int) -> int:
        """Where the last ``lines`` lines begin; an end without newline counts as a line. May read the whole stream.

        :raises OSError: if the output cannot be read
        """
        end = position = self.size()
        if lines <= 0:
            return end
        while position > 0:
            start = max(0, position - WINDOW_BYTES)
            window = self._exactly(start, position - start)
            # A newline at the very end closes the last line, it does not begin another.
            at = len(window) - 1 if position == end else len(window)
            while (at := window.rfind(b"\n", 0, at)) >= 0:
                lines -= 1
                if lines == 0:
                    return start + at + 1
            position = start
        return 0

    def _exactly(self, offset: int, count: int) -> bytes:
        window = bytearray()
        while len(window) < count:
            part = self.read(offset + len(window), count - len(window))
            if not part:
                raise OSError(errno.EIO, "the output became shorter while it was read")
            window += part
        return bytes(window)

    def _read_part(self, offset: int, count: int, wait: bool) -> bytes:
        number = self._record_of(offset)
        before = self._index.record(number - 1)
        records = self._index.records(number, _RECORDS_AT_ONCE)
        if not records or count <= 0:
            return b""
        # One read of the data in capture order, of which this stream's runs are then picked.
        start = before.merged_end + offset - before.end_of(self.stream)
        span = min(WINDOW_BYTES, records[-1].merged_end - start)
        if records[0].merged_end - start >= count:
            span = count
        window = memoryview(self._read_data(start, span, wait))
        picked = bytearray()
        for step, record in enumerate(records):
            self._hint = number + step
            begin = max(before.merged_end, start) - start
            if begin >= len(window) or len(picked) >= count:
                break
            if record.kind == self._kind:
                picked += window[begin : record.merged_end - start]
            before = record
        return bytes(picked[:count])

    def _record_of(self, offset: int) -> int:
        """The first record that ends beyond ``offset``: it is of this stream."""
        hint = self._hint
        if hint < self._index.count() and self._ends_at(hint - 1) <= offset < self._ends_at(hint):
            return hint
        return self._index.find(self.stream, offset)

    def _ends_at(self, number: int) -> int:
        return self._index.record(number).end_of(self.stream)

    def _read_data(self, offset: int, count: int, wait: bool) -> bytes:
        if wait:
            return os.pread(self._data_fd, count, offset)
        if not self._nowait:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        buffer = bytearray(count)
        try:
            got = os.preadv(self._data_fd, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            raise
        except OSError as error:
            # Some file systems cannot promise it; then each read goes through a thread.
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            self._nowait = False
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
        return bytes(memoryview(buffer)[:got])
