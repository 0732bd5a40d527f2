from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobcluster_worker.output.index import STDERR, STDOUT
from jobcluster_worker.output.log import OutputLog
from jobcluster_worker.output.reader import WINDOW_BYTES, OutputReader

KINDS = st.sampled_from([STDOUT, STDERR])


def written(directory: Path, *runs: tuple[int, bytes]) -> OutputLog:
    log = OutputLog(directory, max_bytes=1 << 30)
    for step, (kind, data) in enumerate(runs):
        log.write(kind, data, step * 1.0)
    return log


def read_all(reader: OutputReader, offset: int = 0, count: int = WINDOW_BYTES) -> bytes:
    whole = bytearray()
    while part := reader.read(offset + len(whole), count):
        assert len(part) <= count
        whole += part
    return bytes(whole)


@settings(deadline=None)
@given(
    st.lists(st.tuples(KINDS, st.binary(max_size=60)), max_size=30), st.integers(1, 70), st.integers(0, 100)
)
def test_every_stream_is_read_exactly_from_any_offset_in_pieces_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, bytes]], count: int, offset: int
) -> None:
    directory = tmp_path_factory.mktemp("task")
    written(directory, *runs).close()
    expected = {
        "merged": b"".join(data for _, data in runs),
        "stdout": b"".join(data for kind, data in runs if kind == STDOUT),
        "stderr": b"".join(data for kind, data in runs if kind == STDERR),
    }
    for stream, whole in expected.items():
        with OutputReader(directory, stream) as reader:
            assert reader.size() == len(whole)
            at = min(offset, len(whole))
            assert read_all(reader, at, count) == whole[at:]
            assert reader.read(len(whole) + 1, count) == b""


def test_a_stream_thin_in_a_large_output_is_found_across_windows_and_batches_of_records(
    tmp_path: Path,
) -> None:
    runs = [(STDOUT, bytes([65 + i % 26]) * 9000) if i % 7 else (STDERR, b"%d\n" % i) for i in range(900)]
    written(tmp_path, *runs).close()
    for stream, kind in (("stdout", STDOUT), ("stderr", STDERR)):
        with OutputReader(tmp_path, stream) as reader:
            assert read_all(reader) == b"".join(data for k, data in runs if k == kind)


def test_what_is_not_indexed_yet_is_not_shown(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, max_bytes=1000)
    log.write(STDOUT, b"shown", 10.0)
    log.write(STDOUT, b" later", 10.001)
    with OutputReader(tmp_path) as merged, OutputReader(tmp_path, "stdout") as stdout:
        for reader in (merged, stdout):
            assert (reader.size(), read_all(reader), reader.sealed()) == (5, b"shown", None)
        log.seal({"state": "succeeded"})
        for reader in (merged, stdout):
            assert (read_all(reader), reader.sealed()) == (b"shown later", {"state": "succeeded"})
    log.close()


def test_a_read_never_returns_more_than_a_window(tmp_path: Path) -> None:
    written(tmp_path, (STDERR, bytes(3 * WINDOW_BYTES))).close()
    for stream in ("merged", "stderr"):
        with OutputReader(tmp_path, stream) as reader:
            assert len(reader.read(0, 1 << 30)) == WINDOW_BYTES


@pytest.mark.parametrize(
    ("text", "lines", "expected"),
    [
        (b"", 3, b""),
        (b"a\nb\nc\n", 0, b""),
        (b"a\nb\nc\n", 1, b"c\n"),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc\n", 9, b"a\nb\nc\n"),
        (b"a\nb\nc", 1, b"c"),
        (b"a\n\n\n", 2, b"\n\n"),
        (b"\n" + b"x" * (WINDOW_BYTES + 5) + b"\nend\n", 2, b"x" * (WINDOW_BYTES + 5) + b"\nend\n"),
        (b"x" * (WINDOW_BYTES - 1) + b"\n" + b"y" * WINDOW_BYTES, 1, b"y" * WINDOW_BYTES),
    ],
)
def test_the_tail_is_the_last_lines(tmp_path: Path, text: bytes, lines: int, expected: bytes) -> None:
    written(tmp_path, (STDERR, b"noise\n"), (STDOUT, text)).close()
    with OutputReader(tmp_path, "stdout") as reader:
        assert read_all(reader, reader.tail_offset(lines)) == expected


def test_what_the_page_cache_has_is_read_without_waiting(tmp_path: Path) -> None:
    written(tmp_path, (STDOUT, b"cached")).close()
    with OutputReader(tmp_path) as reader:
        try:
            assert reader.read(0, 100, wait=False) == b"cached"
        except BlockingIOError:  # this file system cannot promise it
            assert reader.read(0, 100) == b"cached"


def test_an_output_that_is_not_there_and_a_stream_that_is_none_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        OutputReader(tmp_path)
    with pytest.raises(ValueError, match="stream 'x' is none of merged, stdout, stderr"):
        OutputReader(tmp_path, "x")


def test_a_closed_reader_and_one_that_could_not_be_opened_leave_no_descriptor(tmp_path: Path) -> None:
    written(tmp_path).close()
    before = len(os.listdir("/proc/self/fd"))
    with OutputReader(tmp_path) as reader:
        reader.close()
    (tmp_path / "index").write_bytes(b"something else, and long enough")
    for _ in range(3):
        with pytest.raises(Exception, match="not an output index"):
            OutputReader(tmp_path)
    (tmp_path / "index").unlink()
    with pytest.raises(FileNotFoundError):
        OutputReader(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
