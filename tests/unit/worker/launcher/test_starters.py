from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from jobcluster_worker.launcher.starters import Starters


@pytest.fixture
def no_more_threads() -> Iterator[None]:
    """No thread can be made: nobody has so much address space for a stack."""
    threading.stack_size(1 << 47)
    yield
    threading.stack_size(0)


def wait(gate: threading.Event) -> None:
    gate.wait(60)


def test_work_that_hangs_holds_up_no_other() -> None:
    starters, gate, done = Starters(threads=2), threading.Event(), threading.Semaphore(0)
    starters.submit(lambda: wait(gate))
    for _ in range(10):
        starters.submit(done.release)
    assert all(done.acquire(timeout=20) for _ in range(10))
    gate.set()


@pytest.mark.usefixtures("no_more_threads")
def test_without_any_thread_work_is_refused_and_not_kept() -> None:
    starters, done = Starters(), threading.Event()
    with pytest.raises(OSError, match="thread"):
        starters.submit(lambda: pytest.fail("it was refused"))
    threading.stack_size(0)
    starters.submit(done.set)
    assert done.wait(20)
