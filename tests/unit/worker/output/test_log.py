from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobcluster_worker.output.index import HEADER, RECORD_BYTES, STDERR, STDOUT
from jobcluster_worker.output.log import FLUSH_SECONDS, INDEX_ALLOWANCE, OutputLog

from tests.unit.worker.output.kept import RUNS, index_of, parts, stream


class FullDisk:
    """A disk with room for so many bytes, which writes what fits and then fails."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, fd: int, data: bytes | memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = os.write(fd, memoryview(data)[: self.room])
        self.room -= count
        return count


@given(RUNS)
def test_each_stream_is_kept_byte_for_byte_with_its_hash(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, bytes, float]]
) -> None:
    directory, now, expected = tmp_path_factory.mktemp("task"), 100.0, [b"", b""]
    log = OutputLog(directory, max_bytes=1 << 30)
    for kind, data, pause in runs:
        now += pause
        log.write(kind, data, now)
        expected[kind] += data
    totals = log.totals()
    log.seal({"job_id": "j", "output": totals})
    log.close()
    merged = b"".join(data for _, data, _ in runs)
    assert parts(directory) == (merged, expected[STDOUT], expected[STDERR])
    assert totals == {
        "merged": stream(merged),
        "stdout": stream(expected[STDOUT]),
        "stderr": stream(expected[STDERR]),
        "dropped_bytes": 0,
    }
    with index_of(directory) as reader:
        assert reader.end() == {"job_id": "j", "output": totals}


def test_the_first_bytes_are_readable_at_once_and_later_ones_within_two_milliseconds(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, max_bytes=1000)
    assert [log.next_flush] == [None]
    log.write(STDOUT, b"first", 10.0)
    assert (log.next_flush, parts(tmp_path)[0]) == (None, b"first")
    log.write(STDOUT, b" second", 10.001)
    assert parts(tmp_path)[0] == b"first"
    assert [log.next_flush] == [10.0 + FLUSH_SECONDS]
    log.flush(10.0 + FLUSH_SECONDS)
    assert (log.next_flush, parts(tmp_path)[0]) == (None, b"first second")
    log.close()


def test_many_tiny_writes_within_one_flush_take_one_record(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, max_bytes=1 << 20)
    for step in range(1 + 1000):
        log.write(STDOUT, b"x", 10.0 + step * 1e-6)
    log.flush(11.0)
    log.close()
    with index_of(tmp_path) as reader:
        assert reader.count() == 2
    assert parts(tmp_path)[0] == b"x" * 1001


def test_the_cap_keeps_the_head_and_counts_every_dropped_byte(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, max_bytes=10)
    log.write(STDOUT, b"12345", 1.0)
    log.write(STDERR, b"67890", 1.0)
    assert not log.limited
    log.write(STDOUT, b"abc", 2.0)
    log.write(STDERR, b"", 2.0)
    log.write(STDERR, b"d", 3.0)
    log.flush(4.0)
    assert (log.limited, log.must_stop, log.dropped_bytes) == (True, False, 4)
    assert parts(tmp_path) == (b"1234567890", b"12345", b"67890")
    log.close()


def test_a_write_that_reaches_over_the_cap_is_kept_up_to_it(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, max_bytes=3, on_limit="stop")
    log.write(STDOUT, b"abcde", 1.0)
    assert (log.limited, log.must_stop, log.dropped_bytes) == (True, True, 2)
    assert log.totals()["merged"] == stream(b"abc")
    log.close()


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 5000),
    st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.integers(1, 900)), max_size=40),
)
def test_kept_and_dropped_bytes_add_up_under_any_cap(
    tmp_path_factory: pytest.TempPathFactory, cap: int, writes: list[tuple[int, int]]
) -> None:
    directory = tmp_path_factory.mktemp("task")
    log = OutputLog(directory, max_bytes=cap)
    for step, (kind, count) in enumerate(writes):
        log.write(kind, bytes(count), step * 0.001)
    log.flush(1e9)
    log.close()
    produced = sum(count for _, count in writes)
    kept = (directory / "output").stat().st_size
    assert kept == min(cap, produced)
    assert log.dropped_bytes == produced - kept
    assert log.limited == (produced > cap)


def test_an_index_beyond_its_allowance_counts_in_the_cap(tmp_path: Path) -> None:
    cap, log = 100_000, OutputLog(tmp_path, max_bytes=100_000)
    for number in range(60_000):  # alternating single bytes need a record each: the worst case
        log.write(number % 2, b"x", number * 1.0)
    log.close()
    on_disk = sum((tmp_path / name).stat().st_size for name in ("output", "index"))
    assert log.limited
    assert on_disk <= cap + INDEX_ALLOWANCE
    assert (tmp_path / "output").stat().st_size + log.dropped_bytes == 60_000


def test_a_full_disk_drops_and_counts_what_does_not_fit_and_says_why(tmp_path: Path) -> None:
    disk = FullDisk(len(HEADER) + 6 + RECORD_BYTES + 2)
    log = OutputLog(tmp_path, max_bytes=1000, os_write=disk.write)
    log.write(STDOUT, b"123456", 1.0)
    assert [log.error] == [None]
    log.write(STDERR, b"abcd", 2.0)
    log.write(STDERR, b"ef", 3.0)
    assert log.error is not None
    assert log.error.errno == errno.ENOSPC
    assert log.dropped_bytes == 4
    assert not log.limited
    assert parts(tmp_path) == (b"123456", b"123456", b"")
    # "ab" is in the data; its record waits for room and is tried again once a second.
    assert log.next_flush == 3.0 + 1.0
    with pytest.raises(OSError, match="No space left"):
        log.seal({})
    disk.room = 1 << 20
    log.write(STDOUT, b"late", 9.0)
    assert parts(tmp_path) == (b"123456ab", b"123456", b"ab")
    assert log.dropped_bytes == 8  # space that comes back does not make a hole in the output
    log.seal({"state": "failed", "output": log.totals()})
    log.close()
    with index_of(tmp_path) as reader:
        assert (reader.end() or {})["state"] == "failed"


def test_tries_to_seal_in_vain_keep_nothing_of_each_other(tmp_path: Path) -> None:
    disk = FullDisk(len(HEADER) + 1)
    log = OutputLog(tmp_path, max_bytes=1000, os_write=disk.write)
    log.write(STDOUT, b"x", 1.0)
    for _ in range(100):
        with pytest.raises(OSError, match="No space left"):
            log.seal({})
    assert log.error is not None
    # Each entry would hold a frame with all its variables, for as long as the disk is full.
    assert len(traceback.extract_tb(log.error.__traceback__)) < 10
    log.close()


def test_a_record_that_fits_only_in_part_leaves_no_part_behind(tmp_path: Path) -> None:
    disk = FullDisk(len(HEADER) + 3 + RECORD_BYTES // 2)
    log = OutputLog(tmp_path, max_bytes=1000, os_write=disk.write)
    log.write(STDOUT, b"abc", 1.0)
    assert (tmp_path / "index").stat().st_size == len(HEADER)
    disk.room = 1 << 20
    log.flush(5.0)
    assert parts(tmp_path)[0] == b"abc"
    log.close()


def test_an_output_is_made_once_and_nothing_is_left_of_one_that_could_not_be_made(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        OutputLog(tmp_path, max_bytes=10, os_write=FullDisk(3).write)
    assert list(tmp_path.iterdir()) == []
    log = OutputLog(tmp_path, max_bytes=10)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o600"}
    with pytest.raises(FileExistsError):
        OutputLog(tmp_path, max_bytes=10)
    log.close()
    log.close()


def test_room_for_the_end_is_taken_while_the_index_grows_and_what_is_left_of_it_given_back(
    tmp_path: Path,
) -> None:
    log = OutputLog(tmp_path, max_bytes=1 << 20)
    index = tmp_path / "index"
    for number in range(200):
        log.write(number % 2, b"x", float(number))
        stat = index.stat()
        assert stat.st_blocks * 512 - stat.st_size >= 3000
    log.seal({"state": "succeeded"})
    log.close()
    stat = index.stat()
    assert stat.st_blocks * 512 - stat.st_size < 4096
