from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobcluster_worker.output.index import RECORD_BYTES, STDOUT
from jobcluster_worker.output.log import OutputLog
from jobcluster_worker.output.recovery import recover

from tests.unit.worker.output.kept import RUNS, index_of, parts, stream


@given(RUNS, st.integers(0, 200))
@settings(deadline=None)
def test_recovery_keeps_what_was_indexed_and_adds_what_lay_behind_it(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, bytes, float]], torn: int
) -> None:
    directory, now = tmp_path_factory.mktemp("task"), 100.0
    log = OutputLog(directory, max_bytes=1 << 30)
    for kind, data, pause in runs:
        now += pause
        log.write(kind, data, now)
    log.close()  # died: what was pending is lost
    index = directory / "index"
    index.write_bytes(index.read_bytes()[: max(0, index.stat().st_size - torn)])
    before = parts(directory)
    sealed = recover(directory, {"state": "failed", "output": {"path": "p"}})
    merged, out, err = parts(directory)
    assert merged == b"".join(data for _, data, _ in runs)
    assert (out.startswith(before[1]), err.startswith(before[2])) == (True, True)
    totals = {"path": "p", "merged": stream(merged), "stdout": stream(out), "stderr": stream(err)}
    assert sealed == {"state": "failed", "output": totals}
    with index_of(directory) as reader:
        assert reader.end() == sealed


def test_recovery_of_a_sealed_output_changes_nothing_and_returns_its_end(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, max_bytes=100)
    log.write(STDOUT, b"all", 1.0)
    log.seal({"state": "succeeded"})
    log.close()
    before = (tmp_path / "index").read_bytes()
    assert recover(tmp_path, {"state": "failed"}) == {"state": "succeeded"}
    assert (tmp_path / "index").read_bytes() == before


def test_recovery_replaces_a_torn_end(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, max_bytes=100)
    log.write(STDOUT, b"all", 1.0)
    log.seal({"state": "succeeded"})
    log.close()
    index = tmp_path / "index"
    index.write_bytes(index.read_bytes()[:-3])
    assert recover(tmp_path, {"state": "failed"})["state"] == "failed"
    assert recover(tmp_path, {"state": "other"})["state"] == "failed"
    assert parts(tmp_path)[0] == b"all"


def test_recovery_drops_records_whose_data_a_power_loss_took(tmp_path: Path) -> None:
    log = OutputLog(tmp_path, max_bytes=100)
    for step, data in enumerate((b"abc", b"def", b"ghi")):
        log.write(STDOUT, data, step * 1.0)
    log.close()
    os.truncate(tmp_path / "output", 7)
    with (tmp_path / "index").open("ab") as file:
        file.write(bytes(2 * RECORD_BYTES))
    recover(tmp_path, {})
    assert parts(tmp_path) == (b"abcdefg", b"abcdefg", b"")


def test_recovery_where_there_is_no_output_says_so_and_makes_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        recover(tmp_path, {})
    assert list(tmp_path.iterdir()) == []
