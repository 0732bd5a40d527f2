"""The index beside a task's data file: which bytes of it belong to which stream, and how the task ended.

A header of 16 bytes, then records of 32 bytes, little-endian: the cumulative ends of the merged stream,
of stdout and of stderr after a run of bytes of one kind, and the time with the kind in its lowest byte.
The last record, of kind END, is followed by a u32 length and the ended task as JSON.

Readers find the end of the records by bisection and need no trailer: the byte that holds a record's kind is
0, 1 or 2; in the JSON that follows END, which is ASCII and padded, the byte in that place is at least a space.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass

STDOUT = 0
STDERR = 1
END = 2

MERGED_STREAM = "merged"
STREAMS = (MERGED_STREAM, "stdout", "stderr")

HEADER = b"JCIDX\x01".ljust(16, b"\0")
RECORD_BYTES = 32
_RECORD = struct.Struct("<QQQQ")
_LENGTH = struct.Struct("<I")
_KIND_AT = 24
# More than any task's end needs; a length beyond it is damage.
_END_BYTES_MAX = 1 << 24


class DamagedIndex(Exception):
    """The index is not one of ours, or a part of it that was complete is no longer readable."""


@dataclass(frozen=True, slots=True)
class Record:
    """The ends of all streams, in bytes, after a run of bytes of one ``kind``."""

    merged_end: int
    stdout_end: int
    stderr_end: int
    time_us: int
    kind: int

    def pack(self) -> bytes:
        return _RECORD.pack(self.merged_end, self.stdout_end, self.stderr_end, self.time_us << 8 | self.kind)

    @classmethod
    def unpack(cls, data: bytes | memoryview, at: int = 0) -> Record:
        merged_end, stdout_end, stderr_end, stamp = _RECORD.unpack_from(data, at)
        return cls(merged_end, stdout_end, stderr_end, stamp >> 8, stamp & 0xFF)

    def end_of(self, stream: str) -> int:
        """The end of ``stream`` ("merged", "stdout" or "stderr") in bytes."""
        if stream == MERGED_STREAM:
            return self.merged_end
        return self.stdout_end if stream == "stdout" else self.stderr_end


NOTHING = Record(0, 0, 0, 0, STDOUT)
"""What holds before the first record."""


def pack_end(last: Record, time_us: int, task: dict[str, object]) -> bytes:
    """The END record and the ended ``task``, to be appended in one write."""
    text = json.dumps(task, separators=(",", ":")).encode("ascii")
    # Whole blocks, so that each block of the text has a printable byte where a record has its kind.
    text = text.ljust(-(-(len(text) + _LENGTH.size) // RECORD_BYTES) * RECORD_BYTES - _LENGTH.size)
    record = Record(last.merged_end, last.stdout_end, last.stderr_end, time_us, END)
    return record.pack() + _LENGTH.pack(len(text)) + text


class IndexReader:
    """Reads an index that may still grow. Holds one descriptor and nothing of the file's content."""

    def __init__(self, fd: int) -> None:
        """Takes the open descriptor ``fd`` over.

        :raises DamagedIndex: if the file does not begin as an index does
        """
        self._fd = fd
        self._count = 0
        self._ended = False
        header = os.pread(fd, len(HEADER), 0)
        if not HEADER.startswith(header):
            raise DamagedIndex(f"not an output index: begins with {header!r}")

    def close(self) -> None:
        os.close(self._fd)

    @property
    def fd(self) -> int:
        return self._fd

    def count(self) -> int:
        """The number of records before END, as of now."""
        if self._ended:
            return self._count
        blocks = self._blocks()
        low, high = self._count, blocks
        # New records are few: look at the last block first, and only bisect when END has been written.
        if high > low and self._kind(high - 1) <= STDERR:
            low = high
        while low < high:
            middle = (low + high) // 2
            if self._kind(middle) <= STDERR:
                low = middle + 1
            else:
                high = middle
        self._count = low
        return low

    def record(self, number: int) -> Record:
        """Record ``number``; -1 is what holds before the first.

        :raises DamagedIndex: if there is no such record
        """
        if number < 0:
            return NOTHING
        data = os.pread(self._fd, RECORD_BYTES, _position(number))
        if len(data) < RECORD_BYTES:
            raise DamagedIndex(f"record {number} is gone")
        return Record.unpack(data)

    def records(self, number: int, count: int) -> list[Record]:
        """At most ``count`` records from ``number`` on, without END."""
        count = min(count, self.count() - number)
        if count <= 0:
            return []
        data = os.pread(self._fd, count * RECORD_BYTES, _position(number))
        return [Record.unpack(data, at) for at in range(0, len(data) - RECORD_BYTES + 1, RECORD_BYTES)]

    def last(self) -> Record:
        """The ends of all streams as of now."""
        return self.record(self.count() - 1)

    def find(self, stream: str, offset: int) -> int:
        """The number of the first record that ends beyond ``offset`` in ``stream``; ``count()`` if none does."""
        low, high = 0, self.count()
        while low < high:
            middle = (low + high) // 2
            if self.record(middle).end_of(stream) > offset:
                high = middle
            else:
                low = middle + 1
        return low

    def end(self) -> dict[str, object] | None:
        """The ended task, or None while it lives or while its end is not wholly written.

        :raises DamagedIndex: if what follows END is not a task
        """
        number = self.count()
        head = os.pread(self._fd, RECORD_BYTES + _LENGTH.size, _position(number))
        if len(head) < RECORD_BYTES + _LENGTH.size or head[_KIND_AT] != END:
            return None
        (length,) = _LENGTH.unpack_from(head, RECORD_BYTES)
        if length > _END_BYTES_MAX:
            raise DamagedIndex(f"an end of {length} bytes")
        text = os.pread(self._fd, length, _position(number) + len(head))
        if len(text) < length:
            return None
        try:
            task = json.loads(text)
        except ValueError as error:
            raise DamagedIndex(f"the end is not JSON: {error}") from error
        if not isinstance(task, dict):
            raise DamagedIndex("the end is not a task")
        self._ended = True
        return task

    def _blocks(self) -> int:
        return max(0, os.fstat(self._fd).st_size - len(HEADER)) // RECORD_BYTES

    def _kind(self, block: int) -> int:
        byte = os.pread(self._fd, 1, _position(block) + _KIND_AT)
        return byte[0] if byte else END


def _position(number: int) -> int:
    return len(HEADER) + number * RECORD_BYTES
