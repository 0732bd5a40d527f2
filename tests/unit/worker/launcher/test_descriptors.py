"""A supervisor that has no descriptor left: what it cannot see now it looks for again."""

from __future__ import annotations

import resource
from collections.abc import Callable

from tests.unit.worker.launcher.process_tree import wait_until
from tests.unit.worker.launcher.worker import Worker


def test_an_end_that_came_while_there_was_no_descriptor_is_told_when_there_is_one(
    begin: Callable[..., Worker],
) -> None:
    worker = begin()
    supervisor = worker.supervisor()
    (pid,) = worker.supervisor_pids()
    key = supervisor.start("sh", "-c", "while [ ! -e go ]; do sleep 0.01; done; exit 3")
    supervisor.until(key, "running")
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    (worker.data / "jobs" / key[0] / "0.1" / "work" / "go").touch()
    wait_until(lambda: "children: [Errno 24]" in worker.errors.read_text(), "a look that failed")
    assert supervisor.tasks[key]["state"] == "running"
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert supervisor.end(key)["exit_code"] == 3
