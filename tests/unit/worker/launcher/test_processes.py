"""Signals reach whom they are meant for, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest
from jobcluster_worker.launcher import processes

from tests.unit.worker.launcher.process_tree import below, wait_until


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def no_more_threads() -> Iterator[None]:
    """No thread can be made: nobody has so much address space for a stack."""
    threading.stack_size(1 << 47)
    yield
    threading.stack_size(0)


@pytest.mark.parametrize(
    ("name", "number"),
    [("TERM", 15), ("SIGTERM", 15), ("term", 15), ("15", 15), ("64", 64), ("RTMIN", signal.SIGRTMIN)],
)
def test_a_signal_is_known_by_its_name_and_number(name: str, number: int) -> None:
    assert processes.signal_number(name) == number


@pytest.mark.parametrize("name", ["", "0", "65", "-1", "NONSENSE", "SIG", "TERM ", "¹"])
def test_what_is_no_signal_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no signal"):
        processes.signal_number(name)


def test_a_stranger_with_the_number_of_a_process_that_is_gone_is_not_signalled(
    sleeper: subprocess.Popen[bytes],
) -> None:
    assert not processes.send_to_child(sleeper.pid, signal.SIGKILL, {1, os.getppid()})
    assert sleeper.poll() is None
    assert processes.send_to_child(sleeper.pid, signal.SIGKILL, {os.getpid()})
    assert sleeper.wait(20) == -signal.SIGKILL
    assert not processes.send_to_child(sleeper.pid, signal.SIGKILL, {os.getpid()})


def test_descendants_are_a_parent_before_its_children(sleeper: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & sh -c 'sleep 60 & wait' & wait"]) as process:
        try:
            wait_until(lambda: len(below(process.pid)) == 3, "the tree")
            found = processes.descendants(process.pid)
            assert sorted(found) == sorted(below(process.pid))
            for pid in found:
                parent = processes.parent_of(pid)
                assert parent == process.pid or found.index(parent or 0) < found.index(pid)
            assert sleeper.pid not in found
        finally:
            for pid in (*processes.descendants(process.pid), process.pid):
                processes.send(pid, signal.SIGKILL)


def test_a_process_that_is_gone_has_no_uid_no_parent_and_no_children(
    sleeper: subprocess.Popen[bytes],
) -> None:
    assert processes.uid_of(sleeper.pid) == os.getuid()
    assert os.getuid() in processes.uids_in_use()
    sleeper.kill()
    sleeper.wait()
    assert processes.uid_of(sleeper.pid) is None
    assert processes.parent_of(sleeper.pid) is None
    assert processes.children(sleeper.pid) == []


@pytest.mark.usefixtures("no_more_threads")
def test_a_uid_that_cannot_be_signalled_for_want_of_a_thread_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="thread"):
        processes.signal_uid(123_456, 123_457, signal.SIGTERM)
