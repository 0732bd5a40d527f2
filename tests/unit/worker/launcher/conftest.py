"""A real launcher with real supervisors; the test itself is the server on their sockets."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.worker.launcher.connection import Supervisor
from tests.unit.worker.launcher.worker import Worker

NOBODY = 65534


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A short directory that any user may enter (pytest's own is the test user's alone)."""
    path = Path(tempfile.mkdtemp(prefix="jc-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def begin(scratch: Path) -> Iterator[Callable[..., Worker]]:
    """Starts workers; all of them are ended with the test, and none may leave a process."""
    workers: list[Worker] = []

    def start(**settings: Any) -> Worker:
        directory = scratch / f"w{len(workers)}"
        directory.mkdir()
        user = settings.get("user")
        if user is not None:
            os.chown(directory, user, user)
        worker = Worker(directory, **settings)
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.close()


USERS = [
    pytest.param(
        None,
        id="as root" if os.getuid() == 0 else "as this user",
    ),
    pytest.param(
        NOBODY,
        id="as a plain user",
        marks=pytest.mark.skipif(os.getuid() != 0, reason="this user is a plain one already"),
    ),
]


@pytest.fixture(params=USERS)
def worker(begin: Callable[..., Worker], request: pytest.FixtureRequest) -> Worker:
    """A worker, as root and as a plain user."""
    return begin(user=request.param)


@pytest.fixture
def supervisor(worker: Worker) -> Supervisor:
    return worker.supervisor()
