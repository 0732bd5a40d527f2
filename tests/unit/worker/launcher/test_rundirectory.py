"""The directory of the sockets: short, private, and gone with its launcher however that ends."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from jobcluster_worker.launcher.rundirectory import RunDirectory

from tests.unit.worker.launcher.process_tree import alive, wait_until
from tests.unit.worker.launcher.worker import Worker


@pytest.mark.skipif(os.getuid() == 0, reason="root has /run")
def test_a_plain_users_lies_in_the_runtime_directory_and_is_his_alone(scratch: Path) -> None:
    made = RunDirectory.make({"XDG_RUNTIME_DIR": str(scratch)})
    assert made.path.parent == scratch
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
    made.remove()


def test_it_is_for_its_owner_only_and_its_sockets_names_are_short() -> None:
    made = RunDirectory.make({})
    try:
        assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
        # sun_path has 108 bytes with its NUL (unix(7)).
        assert len(os.fsencode(made.supervisor_socket("s" + "9" * 9))) < 108
    finally:
        made.remove()
    assert not made.path.exists()


@pytest.mark.parametrize("name", ["", "relative/jobcluster-x", "/tmp/no-such-prefix"])
def test_what_is_no_run_directory_is_left_alone(scratch: Path, name: str) -> None:
    RunDirectory.remove_left(name)
    other = scratch / "mine"
    other.mkdir()
    RunDirectory.remove_left(str(other))
    link = scratch / "jobcluster-link"
    link.symlink_to(other)
    RunDirectory.remove_left(str(link))
    assert other.is_dir()


def test_the_next_launcher_removes_what_a_killed_one_has_left(begin: Callable[..., Worker]) -> None:
    worker = begin()
    left, pids = worker.run_directory, worker.pids()
    worker.process.kill()
    worker.process.wait()
    wait_until(lambda: not any(map(alive, pids)), "the end of all below it")
    assert left.is_dir()
    worker.starts_file.unlink()
    worker.process = worker._begin("clean", None)
    assert worker.run_directory.is_dir()
    assert not left.exists()
