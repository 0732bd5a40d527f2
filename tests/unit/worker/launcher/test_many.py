"""Hundreds of short tasks: every end is right, and nothing is left of any of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.worker.launcher.connection import Supervisor, as_id, spec_of
from tests.unit.worker.launcher.process_tree import below
from tests.unit.worker.launcher.worker import Worker


def run_many(supervisor: Supervisor, count: int, together: int) -> None:
    """Starts with so many at a time; each tells its own code, and its end is acknowledged."""
    begun = done = 0
    live: set[tuple[str, int, int]] = set()
    while done < count:
        while begun < count and len(live) < together:
            spec = spec_of("sh", "-c", f"echo {begun}; exit {begun % 7}", job_id=f"many-{begun}")
            supervisor.send({"op": "start", "id": f"start-{begun}", "spec": spec})
            live.add((f"many-{begun}", 0, 1))
            begun += 1
        supervisor.take(5.0)
        over = {key for key in live if supervisor.tasks.get(key, {}).get("finished_at_us")}
        for key in over:
            task, number = supervisor.tasks.pop(key), int(key[0].removeprefix("many-"))
            assert (task["exit_code"], task["reason"]) == (number % 7, "exited"), task
            assert Path(task["output"]["path"]).read_text() == f"{number}\n"
        if over:
            supervisor.send({"op": "ack", "id": f"ack-{done}", "tasks": [as_id(key) for key in over]})
        live -= over
        done += len(over)
    assert all(reply["ok"] for reply in supervisor.replies.values())


@pytest.mark.timeout(120)
def test_500_short_tasks_leave_no_process_descriptor_claim_or_end(begin: Callable[..., Worker]) -> None:
    worker = begin()
    supervisor = worker.supervisor()
    # As many threads as there will ever be are made before the count.
    run_many(supervisor, 40, supervisor.hello()["capacity"])
    (pid,) = worker.supervisor_pids()
    descriptors, threads = len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))
    supervisor.replies.clear()
    for directory in (worker.data / "jobs").iterdir():
        directory.rename(directory.with_name(f"before-{directory.name}"))
    run_many(supervisor, 500, supervisor.hello()["capacity"])
    assert supervisor.hello()["tasks"] == supervisor.hello()["ends"] == []
    assert below(pid) == []
    assert len(os.listdir(f"/proc/{pid}/fd")) == descriptors
    assert len(os.listdir(f"/proc/{pid}/task")) <= max(threads, 8 + 1)
    assert worker.claims() == []
    assert all(log.stat().st_size == 0 for log in (worker.state / "ends").iterdir())
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(10) == 0
    assert list((worker.state / "ends").iterdir()) == []
