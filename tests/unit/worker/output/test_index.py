from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobcluster_worker.output.index import (
    END,
    HEADER,
    NOTHING,
    RECORD_BYTES,
    STDERR,
    STDOUT,
    DamagedIndex,
    IndexReader,
    Record,
    pack_end,
)

SIZES = st.integers(min_value=0, max_value=2**40)


def open_index(path: Path, content: bytes) -> IndexReader:
    path.write_bytes(content)
    return IndexReader(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def records(*runs: tuple[int, int]) -> list[Record]:
    """Records of runs (kind, bytes)."""
    made, out, err = [], 0, 0
    for kind, count in runs:
        out, err = (out + count, err) if kind == STDOUT else (out, err + count)
        made.append(Record(out + err, out, err, 1_700_000_000_000_000, kind))
    return made


def packed(made: list[Record]) -> bytes:
    return HEADER + b"".join(record.pack() for record in made)


@given(SIZES, SIZES, SIZES, st.integers(min_value=0, max_value=2**55), st.sampled_from([STDOUT, STDERR, END]))
def test_a_record_is_read_as_it_was_packed(merged: int, out: int, err: int, time_us: int, kind: int) -> None:
    record = Record(merged, out, err, time_us, kind)
    assert len(record.pack()) == RECORD_BYTES
    assert Record.unpack(record.pack()) == record


def test_an_empty_index_and_one_whose_header_is_not_written_yet_have_no_records(tmp_path: Path) -> None:
    for content in (b"", HEADER[:5], HEADER):
        reader = open_index(tmp_path / "index", content)
        assert (reader.count(), reader.last(), reader.end()) == (0, NOTHING, None)
        reader.close()


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedIndex, match="not an output index"):
        open_index(tmp_path / "index", b"#!/bin/sh\nexit 0\n")


def test_a_torn_record_is_not_seen_until_it_is_whole(tmp_path: Path) -> None:
    whole = packed(records((STDOUT, 5), (STDERR, 7)))
    reader = open_index(tmp_path / "index", whole[:-1])
    assert reader.count() == 1
    with (tmp_path / "index").open("ab") as file:
        file.write(whole[-1:])
    assert reader.count() == 2
    assert reader.last().end_of("stderr") == 7
    reader.close()


def test_an_end_is_seen_only_when_all_of_it_is_there(tmp_path: Path) -> None:
    made = records((STDOUT, 5), (STDERR, 7))
    end = pack_end(made[-1], 1, {"job_id": "j", "error_text": "ärger " * 50})
    for cut in range(len(end)):
        reader = open_index(tmp_path / "index", packed(made) + end[:cut])
        assert (reader.count(), reader.end()) == (2, None)
        reader.close()
    reader = open_index(tmp_path / "index", packed(made) + end)
    assert reader.end() == {"job_id": "j", "error_text": "ärger " * 50}
    assert (reader.count(), reader.last()) == (2, made[-1])
    reader.close()


@given(
    st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.integers(1, 9)), max_size=60),
    st.integers(0, 300),
)
def test_the_records_before_an_end_are_counted_whatever_their_number(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int]], padding: int
) -> None:
    made = records(*runs)
    task: dict[str, object] = {"text": "x" * padding}
    end = pack_end(made[-1] if made else NOTHING, 1, task)
    reader = open_index(tmp_path_factory.mktemp("index") / "index", packed(made) + end)
    assert reader.count() == len(made)
    assert reader.end() == task
    reader.close()


@given(st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.integers(1, 9)), max_size=60))
def test_the_record_of_an_offset_is_the_first_that_ends_beyond_it(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int]]
) -> None:
    made = records(*runs)
    reader = open_index(tmp_path_factory.mktemp("index") / "index", packed(made))
    for stream in ("merged", "stdout", "stderr"):
        for offset in range(reader.last().end_of(stream) + 1):
            expected = next((i for i, record in enumerate(made) if record.end_of(stream) > offset), len(made))
            assert reader.find(stream, offset) == expected
    assert reader.records(0, 1000) == made
    reader.close()


def test_an_end_that_is_not_a_task_is_damage(tmp_path: Path) -> None:
    end = pack_end(NOTHING, 1, {})
    for text in (b"[]", b"{{"):
        reader = open_index(tmp_path / "index", HEADER + end[:RECORD_BYTES] + b"\x02\0\0\0" + text)
        with pytest.raises(DamagedIndex):
            reader.end()
        reader.close()
