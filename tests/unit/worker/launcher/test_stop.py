"""Stops and what tries to escape them: nothing of a task outlives its end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.worker.launcher.connection import Supervisor, facts, text_of
from tests.unit.worker.launcher.process_tree import below
from tests.unit.worker.launcher.worker import Worker

# Each says "ready" when it has done what it does, and ignores TERM where that is possible.
TREES = {
    "ignores TERM": "trap '' TERM; echo ready; while :; do sleep 1; done",
    "setsid": "setsid sh -c \"trap '' TERM; echo ready; while :; do sleep 1; done\" & wait",
    "double fork": "( ( trap '' TERM; echo ready; while :; do sleep 1; done ) & ) ; sleep 60",
    "nohup": "nohup sh -c \"trap '' TERM; echo ready; while :; do sleep 1; done\" & wait",
    "orphan of an orphan": (
        'setsid sh -c \'setsid sh -c "trap \\"\\" TERM; echo ready; sleep 60; sleep 60" &\' & sleep 60'
    ),
    "stopped": "sh -c 'echo ready; kill -STOP $$' & wait",
    "forks for ever": "trap '' TERM; echo ready; while :; do sleep 5 & sleep 0.01; done",
}


def below_supervisor(worker: Worker) -> list[int]:
    from_supervisors = set()
    for pid in worker.supervisor_pids():
        from_supervisors |= set(below(pid))
    return sorted(from_supervisors)


def wait_for_text(supervisor: Supervisor, key: Any, text: str) -> None:
    def seen() -> bool:
        supervisor.take(0.005)
        path = supervisor.tasks.get(key, {}).get("output", {}).get("path")
        return bool(path) and os.path.exists(path) and text in Path(path).read_text()

    supervisor.wait(seen, f"{text!r} in the output of {key}")


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_a_stop_leaves_nothing_of_a_tree_that_tries_to_stay(worker: Worker, tree: str) -> None:
    supervisor = worker.supervisor()
    key = supervisor.start("sh", "-c", TREES[tree])
    wait_for_text(supervisor, key, "ready")
    assert below_supervisor(worker)
    assert supervisor.stop(key, grace_seconds=0.2)["ok"]
    task = supervisor.end(key)
    assert facts(task)[:2] == ("stopped", "stopped")
    # The end was told: from this very moment nothing may be left, not even a zombie.
    assert below_supervisor(worker) == []


@pytest.mark.parametrize("tree", ["setsid", "double fork", "nohup"])
def test_a_daemonised_child_that_keeps_the_pipe_does_not_hold_the_end(worker: Worker, tree: str) -> None:
    supervisor = worker.supervisor()
    escape = {
        "setsid": "setsid sleep 60 &",
        "double fork": "( sleep 60 & );",
        "nohup": "nohup sleep 60 &",
    }[tree]
    began = time.monotonic()
    task = supervisor.run("sh", "-c", f"{escape} echo done; exit 7")
    assert facts(task) == ("failed", "exited", 7, "")
    assert text_of(task) == "done\n"
    assert time.monotonic() - began < 10
    assert below_supervisor(worker) == []


def test_a_stop_signals_every_process_of_the_tree(supervisor: Supervisor) -> None:
    # A shell says on stderr that its sleep was terminated: that is not what is looked at here.
    inner = "exec 2>/dev/null; trap 'echo inner; exit' TERM; echo up; while :; do sleep 0.05; done"
    key = supervisor.start("sh", "-c", f"trap 'wait; echo outer; exit 4' TERM; sh -c \"{inner}\" & wait")
    wait_for_text(supervisor, key, "up")
    supervisor.stop(key)
    task = supervisor.end(key)
    assert facts(task) == ("stopped", "stopped", 4, "")
    # The shell tells of its killed sleep, too.
    assert text_of(task).replace("Terminated\n", "") == "up\ninner\nouter\n"


def test_what_still_works_on_its_end_has_the_grace_though_its_leader_is_gone(supervisor: Supervisor) -> None:
    inner = "exec 2>/dev/null; trap 'sleep 0.3; echo saved; exit' TERM; echo up; while :; do sleep 0.05; done"
    key = supervisor.start("sh", "-c", f'sh -c "{inner}" & wait')
    wait_for_text(supervisor, key, "up")
    supervisor.stop(key, grace_seconds=10)
    assert text_of(supervisor.end(key)).replace("Terminated\n", "") == "up\nsaved\n"


def test_a_stop_is_over_long_before_its_grace_when_the_program_obeys(supervisor: Supervisor) -> None:
    key = supervisor.start("sleep", "60")
    supervisor.until(key, "running")
    began = time.monotonic()
    supervisor.stop(key, grace_seconds=60)
    assert facts(supervisor.end(key)) == ("stopped", "stopped", None, "TERM")
    assert time.monotonic() - began < 5


def test_a_stop_passes_through_stopping_and_a_laxer_one_changes_nothing(supervisor: Supervisor) -> None:
    key = supervisor.start("sh", "-c", "trap 'sleep 0.2; exit 0' TERM; echo up; sleep 60 & wait")
    wait_for_text(supervisor, key, "up")
    assert supervisor.stop(key, reason="task_failed")["ok"]
    supervisor.until(key, "stopping")
    assert supervisor.stop(key, reason="worker_shutdown")["ok"]
    assert facts(supervisor.end(key))[:3] == ("stopped", "task_failed", 0)
    assert supervisor.stop(key)["ok"]
    assert supervisor.tasks[key]["reason"] == "task_failed"


def test_a_stricter_stop_sends_its_signal_at_once_and_a_laxer_one_sends_none(supervisor: Supervisor) -> None:
    traps = "trap 'echo term' TERM; trap 'echo int' INT; trap 'echo usr1; exit 3' USR1"
    key = supervisor.start("sh", "-c", f"exec 2>/dev/null; {traps}; echo up; while :; do sleep 0.05; done")
    wait_for_text(supervisor, key, "up")
    supervisor.stop(key, grace_seconds=600)
    wait_for_text(supervisor, key, "term")
    supervisor.stop(key, signal="INT", grace_seconds=600)
    supervisor.stop(key, signal="USR1", grace_seconds=300, reason="worker_shutdown")
    task = supervisor.end(key)
    assert facts(task) == ("stopped", "stopped", 3, "")
    assert text_of(task) == "up\nterm\nusr1\n"


def test_a_stop_with_a_shorter_grace_shortens_it(supervisor: Supervisor) -> None:
    key = supervisor.start("sh", "-c", TREES["ignores TERM"])
    wait_for_text(supervisor, key, "ready")
    supervisor.stop(key, grace_seconds=600)
    supervisor.stop(key, grace_seconds=0.2)
    supervisor.stop(key, grace_seconds=600)
    assert facts(supervisor.end(key)) == ("stopped", "stopped", None, "KILL")


def test_a_stop_hastens_the_end_of_a_timeouts_grace_and_the_reason_stays(
    begin: Callable[..., Worker],
) -> None:
    supervisor = begin(grace_seconds=600.0).supervisor()
    key = supervisor.start("sh", "-c", TREES["ignores TERM"], timeout_seconds=1.0)
    supervisor.until(key, "stopping")
    supervisor.stop(key, signal="KILL")
    assert facts(supervisor.end(key)) == ("failed", "timed_out", None, "KILL")


def test_a_stop_with_kill_ends_a_stop_that_waits_for_its_grace(supervisor: Supervisor) -> None:
    key = supervisor.start("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")
    wait_for_text(supervisor, key, "up")
    supervisor.stop(key, grace_seconds=600)
    supervisor.stop(key, signal="KILL")
    assert facts(supervisor.end(key)) == ("stopped", "stopped", None, "KILL")


def test_a_stop_with_kill_reaches_what_has_its_grace_though_its_leader_is_gone(
    supervisor: Supervisor,
) -> None:
    key = supervisor.start("sh", "-c", "(trap '' TERM; echo up; while :; do sleep 1; done) & wait")
    wait_for_text(supervisor, key, "up")
    leader = supervisor.until(key, "running")["pid"]
    supervisor.stop(key, grace_seconds=600)
    supervisor.wait(lambda: not Path(f"/proc/{leader}").exists(), "the leader's end")
    supervisor.stop(key, signal="KILL")
    assert facts(supervisor.end(key)) == ("stopped", "stopped", None, "TERM")


def test_a_timeout_during_a_stop_does_not_change_the_reason(supervisor: Supervisor) -> None:
    key = supervisor.start(
        "sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done", timeout_seconds=1.0
    )
    wait_for_text(supervisor, key, "up")
    supervisor.stop(key, grace_seconds=1.5)
    assert facts(supervisor.end(key))[:2] == ("stopped", "stopped")


def test_a_program_that_ended_before_the_stop_was_read_keeps_its_own_end(worker: Worker) -> None:
    supervisor = worker.supervisor()
    key = supervisor.start("sh", "-c", "read line; exit 9", stdin="")
    supervisor.until(key, "failed")
    slow = supervisor.start("sh", "-c", "echo up; sleep 0.3; exit 9")
    wait_for_text(supervisor, slow, "up")
    (pid,) = worker.supervisor_pids()
    os.kill(pid, signal.SIGSTOP)
    try:
        supervisor.send({"op": "stop", "task": {"job_id": slow[0], "task_rank": 0, "attempt": 1}})
        leader = supervisor.tasks[slow]["pid"]
        supervisor.wait(lambda: is_zombie(leader) or supervisor.take(0.01), "the end of the leader")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert facts(supervisor.end(slow)) == ("failed", "exited", 9, "")


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_stop_that_comes_with_the_start_ends_the_task_whether_it_ran_or_not(supervisor: Supervisor) -> None:
    for number in range(20):
        name = {"job_id": f"race-{number}", "task_rank": 0, "attempt": 1}
        supervisor.send({"op": "start", "spec": {**name, "command_words": ["sleep", "60"]}})
        supervisor.send({"op": "stop", "task": name, "grace_seconds": 5})
        task = supervisor.end((name["job_id"], 0, 1))  # type: ignore[arg-type]
        assert facts(task)[:2] == ("stopped", "stopped"), task


def test_orphans_of_a_running_task_leave_no_zombies(worker: Worker) -> None:
    supervisor = worker.supervisor()
    script = "i=0; while [ $i -lt 200 ]; do (true &) ; i=$((i+1)); done; echo made; sleep 60"
    key = supervisor.start("sh", "-c", script)
    wait_for_text(supervisor, key, "made")
    leader = supervisor.tasks[key]["pid"]

    def only_the_leader_and_its_sleep() -> bool:
        supervisor.take(0.01)
        return len(below_supervisor(worker)) <= 2

    supervisor.wait(only_the_leader_and_its_sleep, "zombies reaped")
    assert leader in below_supervisor(worker)
    supervisor.stop(key, signal="KILL")
    supervisor.end(key)


@pytest.mark.skipif(os.getuid() != 0, reason="tasks have uids of their own only under root")
def test_neighbours_survive_each_others_stops(begin: Callable[..., Worker]) -> None:
    supervisor = begin().supervisor()
    keys = [supervisor.start("sh", "-c", "setsid sleep 60 & sleep 60") for _ in range(6)]
    for key in keys:
        supervisor.until(key, "running")
    for key in keys[::2]:
        supervisor.stop(key, signal="KILL")
        supervisor.end(key)
    assert [supervisor.tasks[key]["state"] for key in keys] == ["stopped", "running"] * 3
    for key in keys[1::2]:
        assert Path(f"/proc/{supervisor.tasks[key]['pid']}").exists()
        supervisor.stop(key, signal="KILL")
        supervisor.end(key)
