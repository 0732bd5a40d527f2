import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from tools import processes


@pytest.fixture
def marker() -> str:
    return f"marker-{uuid.uuid4()}"


@pytest.fixture
def tree(marker: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell and, below it, a shell that waits; both have the marker in their command lines."""
    inner = f"echo up; read line # {marker}"
    child = subprocess.Popen(
        ["sh", "-c", f'sh -c "{inner}"; true'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline() == b"up\n"
    yield child
    for pid in (child.pid, *processes.descendants(child.pid)):
        processes.send(pid, signal.SIGKILL)
    child.wait(10)
    child.stdin.close()
    child.stdout.close()


def test_descendants_and_marked_processes_are_found(tree: subprocess.Popen[bytes], marker: str) -> None:
    below = processes.descendants(tree.pid)
    assert len(below) == 1
    assert set(processes.with_argument(marker)) == {tree.pid, *below}


def test_waiting_is_for_any_process_and_bounded(tree: subprocess.Popen[bytes]) -> None:
    (below,) = processes.descendants(tree.pid)
    assert not processes.wait(below, 0.01)
    assert processes.wait_all([tree.pid, below], 0.01) == [tree.pid, below]
    processes.send(below, signal.SIGKILL)
    assert processes.wait_all([below, tree.pid], 10) == []


def test_a_process_that_is_gone_has_ended_and_takes_no_signal() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(30)
    assert processes.wait(child.pid, 0)
    processes.send(child.pid, signal.SIGTERM)
    assert processes.command_line(child.pid) == ""


def test_our_own_command_line_is_not_counted(marker: str) -> None:
    assert os.getpid() not in set(processes.with_argument("pytest"))
