from __future__ import annotations

import os
from pathlib import Path

import pytest
from jobcluster_worker.launcher.claims import Claim, claim_path, prepare_directories, take
from jobcluster_worker.launcher.shapes import TaskKey
from jobcluster_worker.server.retention import LOOK_SECONDS_MAX, Kept, Retention, too_much

ONE, TWO, THREE = (("a", 0, 1), ("b", 0, 1), ("c", 0, 1))


def test_what_is_too_old_goes_and_then_the_oldest_of_what_is_too_much() -> None:
    kept = [Kept(TWO, 20.0, 100), Kept(ONE, 10.0, 100), Kept(THREE, 30.0, 100)]
    assert [k.key for k in too_much(kept, 31.0, 15.0, None)] == [ONE]
    assert [k.key for k in too_much(kept, 31.0, None, 250)] == [ONE]
    assert [k.key for k in too_much(kept, 31.0, None, 100)] == [ONE, TWO]
    assert [k.key for k in too_much(kept, 31.0, 15.0, 100)] == [ONE, TWO]
    assert too_much(kept, 31.0, None, None) == too_much(kept, 31.0, 100.0, 300) == []


def made(data: Path, key: TaskKey, size: int = 0, ended_at: float | None = None) -> Path:
    prepare_directories(data)
    directory = take(data, Claim(key, "i", "s1", -1))
    (directory / "output").write_bytes(b"x" * size)
    (directory / "index").write_bytes(b"")
    (directory / "work").mkdir()
    (directory / "work" / "left").write_text("over")
    if ended_at is not None:
        claim_path(data, key).unlink()
        os.utime(directory / "index", (ended_at, ended_at))
    return directory


def retention(data: Path, seconds: float | None = None, total: int | None = None) -> Retention:
    return Retention(data, lambda key: claim_path(data, key).is_symlink(), seconds, total)


def test_an_ended_task_goes_with_all_it_left_and_one_in_use_stays(tmp_path: Path) -> None:
    old, used = made(tmp_path, ONE, ended_at=1000.0), made(tmp_path, TWO)
    os.utime(used / "index", (1000.0, 1000.0))
    gone = retention(tmp_path, seconds=60.0).look()
    assert [k.key for k in gone] == [ONE]
    assert not old.parent.exists() and (used / "output").exists()
    assert retention(tmp_path, seconds=60.0).look() == []


def test_the_newest_stay_under_the_total(tmp_path: Path) -> None:
    for number, key in enumerate((ONE, TWO, THREE)):
        made(tmp_path, key, size=64 << 10, ended_at=1000.0 + number)
    assert [k.key for k in retention(tmp_path, total=160 << 10).look()] == [ONE]
    assert sorted(p.name for p in (tmp_path / "jobs").iterdir()) == ["b", "c"]


def test_another_attempt_of_the_job_stays(tmp_path: Path) -> None:
    made(tmp_path, ONE, ended_at=1000.0)
    again = made(tmp_path, ("a", 0, 2))
    assert [k.key for k in retention(tmp_path, seconds=60.0).look()] == [ONE]
    assert again.is_dir()


@pytest.mark.skipif(os.getuid() == 0, reason="root enters every directory")
def test_a_directory_that_its_owner_cannot_enter_goes_too(tmp_path: Path) -> None:
    directory = made(tmp_path, ONE, ended_at=1000.0)
    closed = directory / "work" / "closed"
    (closed / "deep").mkdir(parents=True)
    closed.chmod(0)
    assert retention(tmp_path, seconds=60.0).look()
    assert not directory.exists()


def test_a_link_that_a_task_left_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    directory = made(tmp_path / "data", ONE, ended_at=1000.0)
    (directory / "work" / "link").symlink_to(outside)
    assert retention(tmp_path / "data", seconds=60.0).look()
    assert (outside / "precious").read_text() == "kept"


def test_it_looks_more_often_when_it_keeps_things_for_a_short_time(tmp_path: Path) -> None:
    looks = [retention(tmp_path, seconds=s).look_seconds for s in (None, 7 * 86400.0, 20.0, 0.1)]
    assert looks == [LOOK_SECONDS_MAX, LOOK_SECONDS_MAX, 5.0, 0.5]
