"""Sealing what a dead supervisor left of a task's output. Stdlib only."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from jobcluster_worker.output.hashes import StreamHashes
from jobcluster_worker.output.index import HEADER, RECORD_BYTES, STDERR, STDOUT, IndexReader, Record, pack_end
from jobcluster_worker.output.log import DATA_NAME, INDEX_NAME

_READ_BYTES = 1 << 18


def recover(
    directory: Path, task: Mapping[str, object], wall_clock_ns: Callable[[], int] = time.time_ns
) -> dict[str, object]:
    """Seals the output that a dead supervisor left; returns the task as sealed, with its ``output`` totals.

    Data behind the last record was written within the last milliseconds; it is counted to the stream of the
    run before it. An output that has its end keeps it: then that task is returned. No writer may live.

    :raises FileNotFoundError: if there is no output at all
    :raises OSError: if it cannot be read or written
    :raises DamagedIndex: if its index is none
    """
    index_fd = os.open(directory / INDEX_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        reader = IndexReader(index_fd)
    except BaseException:
        os.close(index_fd)
        raise
    try:
        data_fd = os.open(directory / DATA_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        reader.close()
        with suppress(FileNotFoundError):
            (directory / INDEX_NAME).unlink()
        raise
    try:
        ended = reader.end()
        return ended if ended is not None else _seal_left(reader, data_fd, task, wall_clock_ns() // 1000)
    finally:
        os.close(data_fd)
        reader.close()


def _seal_left(
    reader: IndexReader, data_fd: int, task: Mapping[str, object], now_us: int
) -> dict[str, object]:
    size = os.fstat(data_fd).st_size
    count = reader.count()
    # After a power loss records can be there whose data is not, or blocks of zeros.
    while count and not _fits(reader.record(count - 1), reader.record(count - 2), size):
        count -= 1
    last = reader.record(count - 1)
    tail = b""
    if size > last.merged_end:
        more = size - last.merged_end
        out, err = (more, 0) if last.kind == STDOUT else (0, more)
        last = Record(size, last.stdout_end + out, last.stderr_end + err, now_us, last.kind)
        tail = last.pack()
    position = len(HEADER) + count * RECORD_BYTES
    if os.fstat(reader.fd).st_size != position:
        # Not where there is nothing to cut: it would give up the room that was taken for the end.
        os.ftruncate(reader.fd, position)
    if position == len(HEADER):
        os.pwrite(reader.fd, HEADER, 0)
    _pwrite_all(reader.fd, tail, position)
    kept = _rehash(reader.fd, data_fd)
    given = task.get("output")
    sealed = {**task, "output": {**(given if isinstance(given, dict) else {}), **kept}}
    end = pack_end(last, now_us, sealed)
    _pwrite_all(reader.fd, end, position + len(tail))
    os.ftruncate(reader.fd, position + len(tail) + len(end))
    return sealed


def _fits(record: Record, before: Record, size: int) -> bool:
    return (
        before.merged_end < record.merged_end <= size
        and record.merged_end == record.stdout_end + record.stderr_end
    )


def _rehash(index_fd: int, data_fd: int) -> dict[str, object]:
    # A new reader: one that has seen more records than are left would look for them.
    reader, hashes, position, number = IndexReader(index_fd), StreamHashes(), 0, 0
    while records := reader.records(number, 1024):
        for record in records:
            while position < record.merged_end:
                data = os.pread(data_fd, min(_READ_BYTES, record.merged_end - position), position)
                if not data:
                    raise OSError(errno.EIO, "the output became shorter while it was recovered")
                hashes.update(record.kind, memoryview(data))
                position += len(data)
        number += len(records)
    last = reader.last()
    return {
        "merged": {"bytes": last.merged_end, "sha256": hashes.merged()},
        "stdout": {"bytes": last.stdout_end, "sha256": hashes.of(STDOUT)},
        "stderr": {"bytes": last.stderr_end, "sha256": hashes.of(STDERR)},
    }


def _pwrite_all(fd: int, data: bytes, position: int) -> None:
    while data:
        done = os.pwrite(fd, data, position)
        data, position = data[done:], position + done
