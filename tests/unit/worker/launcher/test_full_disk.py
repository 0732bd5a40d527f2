"""A supervisor on a full disk: starts are refused before anything is made, ends are told, outputs sealed later."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from jobcluster_worker.launcher.shapes import TaskKey
from jobcluster_worker.output.index import IndexReader

from tests.unit.worker.full_disk import small_disk
from tests.unit.worker.launcher.connection import Supervisor, text_of
from tests.unit.worker.launcher.process_tree import SECONDS, wait_until
from tests.unit.worker.launcher.worker import Worker


def sealed(directory: Path) -> dict[str, object] | None:
    reader = IndexReader(os.open(directory / "index", os.O_RDONLY | os.O_CLOEXEC))
    try:
        return reader.end()
    finally:
        reader.close()


def allow_files(pid: int, size: int) -> None:
    """From now on the process can make no file longer than that."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")
def test_a_start_without_room_is_refused_with_the_reason_and_leaves_nothing(
    begin: Callable[..., Worker], tmp_path: Path
) -> None:
    with small_disk(tmp_path, 4 << 20):
        worker = begin(data_directory=str(tmp_path))
        supervisor = worker.supervisor()
        (tmp_path / "ballast").write_bytes(bytes(7 << 19))
        key, reply = supervisor.try_start("true")
        assert (reply["ok"], reply["code"]) == (False, "unavailable")
        assert reply["error"].startswith(f"ENOSPC: {tmp_path}: ") and "bytes are free" in reply["error"]
        (tmp_path / "ballast").unlink()
        _, reply = supervisor.try_start("true", files={"big": "x" * (7 << 19)})
        assert reply["code"] == "unavailable"
        assert [list((tmp_path / name).iterdir()) for name in ("claims", "jobs")] == [[], []]
        # The very same attempt, now that there is room.
        supervisor.start("true", job_id=key[0])
        assert supervisor.end(key)["state"] == "succeeded"
        worker.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")
def test_on_a_disk_that_takes_no_more_files_starts_are_refused_and_no_job_fails(
    begin: Callable[..., Worker], tmp_path: Path
) -> None:
    with small_disk(tmp_path, 8 << 20, files=60):
        worker = begin(data_directory=str(tmp_path))
        supervisor = worker.supervisor()
        for _ in range(60):
            key, reply = supervisor.try_start("true")
            if not reply["ok"]:
                break
            assert supervisor.end(key)["state"] == "succeeded"
        assert reply["error"] == f"ENOSPC: {tmp_path}: no more files can be made"
        worker.close()


def test_an_end_that_could_be_written_nowhere_is_told_and_its_output_is_sealed_when_there_is_room(
    begin: Callable[..., Worker],
) -> None:
    worker = begin()
    supervisor = worker.supervisor()
    (pid,) = worker.supervisor_pids()
    key = supervisor.start("sh", "-c", "echo kept; while [ ! -e go ]; do sleep 0.01; done; echo lost; exit 3")
    directory = worker.data / "jobs" / key[0] / "0.1"
    index = directory / "index"
    wait_until(lambda: index.exists() and index.stat().st_size > 16, "its first record")
    allow_files(pid, 0)
    (directory / "work" / "go").touch()
    task = supervisor.end(key)
    assert (task["state"], task["exit_code"]) == ("failed", 3)
    assert "EFBIG" in task["error_text"] and "5 bytes were dropped" in task["error_text"]
    assert (task["output"]["merged"]["bytes"], task["output"]["dropped_bytes"]) == (5, 5)
    supervisor.ack(key)
    # Acknowledged, and yet not released: its claim says that there is something to be done.
    assert sealed(directory) is None
    assert f"{key[0]}.0.1" in worker.claims()
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    wait_until(lambda: sealed(directory), "its end in the output")
    assert sealed(directory) == task
    assert text_of(task) == "kept\n"
    wait_until(lambda: not worker.claims(), "the release of its claim")


def unsealed(worker: Worker) -> tuple[Supervisor, TaskKey]:
    """A task whose end was acknowledged, and whose output could be given neither its last records nor an end."""
    supervisor = worker.supervisor()
    (pid,) = worker.supervisor_pids()
    program = "echo 1; while [ ! -e go ]; do sleep 0.01; done; echo 2 >&2"
    key = supervisor.start("sh", "-c", program)
    directory = worker.data / "jobs" / key[0] / "0.1"
    index = directory / "index"
    wait_until(lambda: index.exists() and index.stat().st_size > 16, "its first record")
    allow_files(pid, index.stat().st_size)
    (directory / "work" / "go").touch()
    assert text_of(supervisor.end(key)) == "1\n2\n"
    supervisor.ack(key)
    assert supervisor.call({"op": "retire"})["ok"]
    assert sealed(directory) is None
    return supervisor, key


def test_a_retired_supervisor_stays_till_an_output_has_its_end(begin: Callable[..., Worker]) -> None:
    worker = begin()
    supervisor, key = unsealed(worker)
    assert supervisor.try_start("true")[1]["code"] == "retired"
    (pid,) = worker.supervisor_pids()
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    wait_until(lambda: pid not in worker.supervisor_pids(), "its end")
    # As it was told: who recovers it afterwards cannot know of which stream the last bytes are.
    assert sealed(worker.data / "jobs" / key[0] / "0.1") == supervisor.tasks[key]
    assert not worker.claims()


def test_an_output_without_its_end_does_not_hold_up_the_end_of_the_worker(
    begin: Callable[..., Worker],
) -> None:
    worker = begin()
    _, key = unsealed(worker)
    worker.process.terminate()
    assert worker.process.wait(SECONDS) == 0
    assert worker.claims() == [f"{key[0]}.0.1"]
