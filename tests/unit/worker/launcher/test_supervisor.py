"""A supervisor and its server's commands: batches, connections that come and go, claims, gates."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

from jobcluster_worker.launcher.shapes import TaskKey

from tests.unit.worker.launcher.connection import Supervisor, Task, as_id, facts, spec_of
from tests.unit.worker.launcher.worker import Worker


def test_an_acknowledgement_that_cannot_be_carried_out_holds_up_nothing_that_came_with_it(
    worker: Worker,
) -> None:
    supervisor = worker.supervisor()
    keys = []
    for _ in range(2):
        keys.append(supervisor.start("true"))
        supervisor.end(keys[-1])
    # The first claim cannot be removed.
    claims = [worker.data / "claims" / f"{key[0]}.0.1" for key in keys]
    claims[0].unlink()
    claims[0].mkdir()
    for message in (
        {"op": "ack", "id": "ack-1", "tasks": [as_id(key) for key in keys]},
        {"op": "no such command", "id": "none-1"},
        {"op": "start", "id": "start-1", "spec": spec_of("true", job_id="after")},
    ):
        supervisor.channel.queue(message)
    supervisor.channel.flush()
    supervisor.wait(lambda: {"ack-1", "none-1", "start-1"} <= set(supervisor.replies), "all replies", 5)
    assert supervisor.replies["none-1"]["code"] == "invalid"
    assert supervisor.replies["start-1"]["ok"]
    assert facts(supervisor.end(("after", 0, 1)))[0] == "succeeded"
    assert not claims[1].is_symlink()
    assert "releasing" in worker.errors.read_text()


def test_every_start_of_a_batch_whose_sender_dies_is_carried_out_or_unknown(worker: Worker) -> None:
    dying = worker.supervisor()
    capacity = dying.hello()["capacity"]
    for number in range(capacity):
        dying.channel.queue(
            {"op": "start", "id": number, "spec": spec_of("sleep", "60", job_id=f"batch-{number}")}
        )
    dying.channel.flush()
    dying.close()
    supervisor = worker.supervisor()
    for number in range(capacity):
        key: TaskKey = (f"batch-{number}", 0, 1)
        reply = supervisor.stop(key, signal="KILL")
        assert reply["ok"] and reply["known"]
        assert facts(supervisor.end(key))[:2] == ("stopped", "stopped")


def test_an_answer_from_the_gate_goes_to_the_connection_that_asked_only(worker: Worker) -> None:
    asking = worker.supervisor()
    (pid,) = worker.supervisor_pids()
    os.kill(pid, signal.SIGSTOP)
    spec = spec_of("true", job_id="gated")
    asking.send({"op": "start", "id": 1, "prepare_only": True, "spec": spec})
    other = Supervisor(str(worker.run_directory / "s1.sock"))
    worker.connections.append(other)
    os.kill(pid, signal.SIGCONT)
    other.hello()
    # Its first command has the number 1 too, and a reply of its own.
    assert other.call({"op": "usage", "task": as_id(("nobody", 0, 1))})["code"] == "unknown"
    key = ("gated", 0, 1)
    other.wait(lambda: other.call({"op": "commit", "task": as_id(key)})["ok"], "the gate")
    assert facts(other.end(key))[0] == "succeeded"
    assert other.replies == {}


def test_the_newest_connection_wins_and_knows_all(worker: Worker) -> None:
    first = worker.supervisor()
    key = first.start("sleep", "60")
    first.until(key, "running")
    second = worker.supervisor()
    assert second.tasks[key]["state"] == "running"
    second.stop(key)
    second.end(key)
    assert worker.supervisor().tasks[key]["state"] == "stopped"


def test_the_same_start_twice_runs_once(worker: Worker) -> None:
    supervisor = worker.supervisor()
    key, _ = supervisor.try_start("true", job_id="twice")
    supervisor.end(key)
    _, again = supervisor.try_start("true", job_id="twice")
    assert (again["code"], again["task"]["state"]) == ("claimed", "succeeded")
    supervisor.ack(key)
    _, later = supervisor.try_start("true", job_id="twice")
    assert later["code"] == "claimed" and "task" not in later


def test_a_stop_of_what_is_not_here_yet_is_told_as_its_end_and_forbids_the_start(
    supervisor: Supervisor,
) -> None:
    key = ("early", 0, 1)
    assert supervisor.stop(key)["known"]
    assert facts(supervisor.end(key))[:2] == ("stopped", "stopped")
    assert supervisor.try_start("true", job_id="early")[1]["code"] == "claimed"


def test_an_acknowledged_end_is_forgotten_with_its_claim_and_the_tombstone_stays(worker: Worker) -> None:
    supervisor = worker.supervisor()
    key = supervisor.start("true")
    supervisor.end(key)
    assert worker.claims() == [f"{key[0]}.0.1"]
    supervisor.ack(key)
    assert worker.claims() == []
    assert (worker.data / "jobs" / key[0] / "0.1").is_dir()
    assert supervisor.hello()["ends"] == []


def test_a_prepared_task_runs_nothing_before_its_commit_and_nothing_after_its_cancel(
    supervisor: Supervisor,
) -> None:
    cancelled = supervisor.start("touch", "made", prepare_only=True)
    assert supervisor.call({"op": "cancel", "task": as_id(cancelled)})["ok"]
    task = supervisor.end(cancelled)
    assert facts(task)[:2] == ("stopped", "stopped")
    assert supervisor.call({"op": "commit", "task": as_id(cancelled)})["code"] == "unknown"
    assert made_by(task) == []
    committed = supervisor.start("touch", "made", prepare_only=True)
    assert made_by(supervisor.tasks[committed]) == []
    assert supervisor.call({"op": "commit", "task": as_id(committed)})["ok"]
    assert supervisor.call({"op": "commit", "task": as_id(committed)})["code"] == "unknown"
    task = supervisor.end(committed)
    assert facts(task)[0] == "succeeded"
    assert made_by(task) == ["made"]


def made_by(task: Task) -> list[str]:
    return os.listdir(Path(task["output"]["path"]).parent / "work")


def test_more_tasks_than_it_takes_are_refused_as_full(worker: Worker) -> None:
    supervisor = worker.supervisor()
    capacity = supervisor.hello()["capacity"]
    for _ in range(capacity):
        supervisor.start("sleep", "60")
    assert supervisor.try_start("true")[1]["code"] == "full"


def test_a_server_that_does_not_read_costs_no_memory_and_holds_no_task_up(worker: Worker) -> None:
    deaf = worker.supervisor()
    (pid,) = worker.supervisor_pids()
    before = resident_bytes(pid)
    message = {"op": "hello"}
    # What is not read any more by the supervisor stays in the socket, and then with us.
    for _ in range(200_000):
        deaf.channel.queue(message)
        if not deaf.channel.flush() and not select.select([], [deaf.channel], [], 0.5)[1]:
            break
    else:
        raise AssertionError("it reads on, whatever waits to be sent")
    assert resident_bytes(pid) - before < 16 << 20
    assert facts(worker.supervisor().run("true"))[0] == "succeeded"


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
