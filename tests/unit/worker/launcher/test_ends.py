"""The end log: what was appended is read, whatever happened to its writer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jobcluster_worker.launcher import claims
from jobcluster_worker.launcher.ended import Ended
from jobcluster_worker.launcher.ends import COMPACT_BYTES, EndLog, end_log_path, read_ends
from jobcluster_worker.launcher.loop import Loop
from jobcluster_worker.launcher.shapes import Task, key_of, new_task
from jobcluster_worker.output.index import HEADER
from jobcluster_worker.output.log import OutputLog

from tests.unit.worker.full_disk import files_of_at_most


def ended(number: int, text: str = "") -> Task:
    task = new_task((f"job-{number}", 0, 1), "succeeded")
    task["error_text"] = text
    return task


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "incarnation.s1.log"


def test_ends_are_read_in_the_order_of_their_appends(path: Path) -> None:
    log = EndLog(path)
    tasks = [ended(number) for number in range(3)]
    for task in tasks:
        log.append(task)
    assert read_ends(path) == tasks
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_supervisor_without_ends_makes_no_file_and_one_with_all_acknowledged_leaves_none(
    path: Path,
) -> None:
    log = EndLog(path)
    assert not path.exists()
    log.append(ended(1))
    log.forget([])
    assert path.stat().st_size == 0
    log.close(remove=True)
    assert not path.exists()
    assert read_ends(path) == []


def test_ends_not_acknowledged_stay_when_it_closes(path: Path) -> None:
    log = EndLog(path)
    log.append(ended(1))
    log.close(remove=False)
    assert read_ends(path) == [ended(1)]


def test_a_line_cut_by_a_crash_and_a_line_of_nonsense_are_passed_over(path: Path) -> None:
    log = EndLog(path)
    log.append(ended(1))
    log.close(remove=False)
    whole = path.read_bytes()
    path.write_bytes(b'{"no": "task"}\nnonsense\n' + whole + whole[: len(whole) // 2])
    assert read_ends(path) == [ended(1)]


def test_a_log_that_has_grown_big_shrinks_to_what_is_not_acknowledged(path: Path) -> None:
    log = EndLog(path)
    for number in range(12):
        log.append(ended(number, "x" * 100_000))
    assert path.stat().st_size > COMPACT_BYTES
    log.forget([ended(11), ended(5)])
    assert read_ends(path) == [ended(11), ended(5)]
    log.append(ended(12))
    assert [task["job_id"] for task in read_ends(path)] == ["job-11", "job-5", "job-12"]
    assert os.listdir(path.parent) == [path.name]


def test_a_small_log_is_not_rewritten_at_each_acknowledgement(path: Path) -> None:
    log = EndLog(path)
    log.append(ended(1))
    log.append(ended(2))
    log.forget([ended(2)])
    assert len(read_ends(path)) == 2


def test_an_end_that_a_full_disk_refused_is_written_with_the_next_and_leaves_no_half_line(path: Path) -> None:
    log = EndLog(path)
    log.append(ended(1))
    with files_of_at_most(path.stat().st_size + 100), pytest.raises(OSError, match="File too large"):
        log.append(ended(2))
    assert read_ends(path) == [ended(1)]
    log.append(ended(3))
    assert read_ends(path) == [ended(1), ended(2), ended(3)]


def test_of_ends_that_could_not_be_written_those_not_acknowledged_are_written_at_the_close(
    path: Path,
) -> None:
    log = EndLog(path)
    with files_of_at_most(0):
        for number in (1, 2):
            with pytest.raises(OSError, match="File too large"):
                log.append(ended(number))
        log.forget([ended(2)])
        log.close(remove=False)
    assert read_ends(path) == []
    log.close(remove=False)
    assert read_ends(path) == [ended(2)]


def test_the_file_is_named_after_incarnation_and_supervisor(tmp_path: Path) -> None:
    assert end_log_path(tmp_path, "abc", "s7") == tmp_path / "ends" / "abc.s7.log"


def test_an_end_not_acknowledged_whose_output_is_not_sealed_either_is_kept_once(tmp_path: Path) -> None:
    def full(_fd: int, data: bytes | memoryview) -> int:
        return len(data) if data == HEADER else os.write(-1, data)

    claims.prepare_directories(tmp_path)
    path, loop = tmp_path / "i.s1.log", Loop()
    kept = Ended(loop, tmp_path, EndLog(path))
    big, unsealed = ended(1, "x" * COMPACT_BYTES), ended(2)
    kept.add(key_of(big), big)
    output = OutputLog(tmp_path, max_bytes=10, os_write=full)
    kept.add(key_of(unsealed), unsealed, output)
    kept.acknowledged([key_of(big)])
    assert read_ends(path) == [unsealed]
    kept.acknowledged([key_of(unsealed)])
    # Acknowledged, but its output still has no end: whoever seals it needs to know it.
    assert (kept.tasks, read_ends(path)) == ([], [unsealed])
    output.close()
    loop.close()
