"""The launcher outlives its server and its supervisors, and ends with everything below it."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from jobcluster_worker.launcher.ends import read_ends

from tests.unit.worker.launcher.connection import Connection, Supervisor, as_id, facts, spec_of
from tests.unit.worker.launcher.process_tree import alive, below, wait_until
from tests.unit.worker.launcher.worker import Worker

STAYS = "trap '' TERM; setsid sleep 60 & while :; do sleep 1; done"


def names(launcher: Connection) -> list[str]:
    launcher.send({"op": "hello"})
    return list(launcher.event("supervisors")["names"])


def ends_of(worker: Worker) -> list[tuple[str, str]]:
    logs = (worker.state / "ends").iterdir()
    return sorted((task["state"], task["reason"]) for log in logs for task in read_ends(log))


def end_of_launcher(worker: Worker, seconds: float = 20.0) -> float:
    """Its exit code is 0; how long it took."""
    began = time.monotonic()
    assert worker.process.wait(seconds) == 0
    return time.monotonic() - began


def running(supervisor: Supervisor, *words: str) -> tuple[str, int, int]:
    key = supervisor.start(*words)
    supervisor.until(key, "running")
    return key


def servers_started(worker: Worker, count: int) -> bool:
    return len(worker.server_starts) == count


def one_of(worker: Worker, pattern: str) -> bool:
    return any((worker.data / "jobs").glob(pattern))


# --- the server


def test_a_killed_server_is_started_again_and_finds_the_tasks_running(worker: Worker) -> None:
    key = running(worker.supervisor(), "sleep", "60")
    for count in (1, 2, 3):
        wait_until(partial(servers_started, worker, count), "a server")
        os.kill(worker.server_starts[-1]["pid"], signal.SIGKILL)
    wait_until(lambda: len(worker.server_starts) == 4, "another server")
    argvs = {tuple(start["argv"]) for start in worker.server_starts}
    assert len(argvs) == 1
    again = worker.supervisor()
    assert again.tasks[key]["state"] == "running"
    assert names(worker.connect()) == ["s1"]


def test_a_server_that_refuses_its_configuration_ends_the_worker_with_2(begin: Callable[..., Worker]) -> None:
    worker = begin(behaviour="refuse")
    assert worker.process.wait(20) == 2
    assert len(worker.server_starts) == 1


def test_a_server_that_was_drained_from_outside_ends_the_worker(begin: Callable[..., Worker]) -> None:
    worker = begin()
    running(worker.supervisor(), "sleep", "60")
    os.kill(worker.server_starts[0]["pid"], signal.SIGTERM)
    end_of_launcher(worker)
    assert ends_of(worker) == [("stopped", "worker_shutdown")]


def test_a_removed_run_directory_is_there_again_for_the_next_server(worker: Worker) -> None:
    key = running(worker.supervisor(), "sleep", "60")
    directory = worker.run_directory
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    os.kill(worker.server_starts[-1]["pid"], signal.SIGKILL)
    wait_until(lambda: (directory / "s1.sock").exists(), "the sockets")
    wait_until(lambda: (directory / "launcher.sock").exists(), "the sockets")
    assert names(worker.connect()) == ["s1"]
    assert worker.supervisor().tasks[key]["state"] == "running"


# --- supervisors


def test_a_killed_supervisor_takes_its_tasks_with_it_and_another_comes(worker: Worker) -> None:
    launcher, supervisor = worker.connect(), worker.supervisor()
    key = running(supervisor, "sh", "-c", STAYS)
    (pid,) = worker.supervisor_pids()
    left = wait_until(lambda: len(tree := below(pid)) >= 3 and tree, "the whole tree")
    os.kill(pid, signal.SIGKILL)
    ended = launcher.event("supervisor_ended", 3.0)
    # From this moment on: the server reports the tasks' end now.
    assert [other for other in left if alive(other)] == []
    assert ended == {"v": 1, "event": "supervisor_ended", "name": "s1", "tasks": [as_id(key)]}
    assert launcher.event("supervisors")["names"] == ["s2"]
    second = worker.supervisor("s2")
    after = second.start("true")
    assert facts(second.end(after))[0] == "succeeded"
    assert worker.claims() == sorted([f"{key[0]}.0.1", f"{after[0]}.0.1"])


def test_a_supervisor_killed_in_the_middle_of_starts_leaves_nothing(worker: Worker) -> None:
    launcher = worker.connect()
    for number in range(1, 6):
        supervisor = worker.supervisor(f"s{number}")
        (pid,) = worker.supervisor_pids()
        for task in range(8):
            spec = spec_of("sleep", "60", job_id=f"round-{number}-{task}")
            supervisor.send({"op": "start", "spec": spec})
        wait_until(partial(one_of, worker, f"round-{number}-*"), "a start")
        os.kill(pid, signal.SIGKILL)
        assert launcher.event("supervisor_ended")["name"] == f"s{number}"
        server = {start["pid"] for start in worker.server_starts}
        launcher.event("supervisors")
        left = [other for other in worker.pids() if other not in server]
        assert left == worker.supervisor_pids()


def test_what_a_dead_supervisor_left_is_killed_though_its_end_log_cannot_be_read(worker: Worker) -> None:
    launcher, supervisor = worker.connect(), worker.supervisor()
    key = running(supervisor, "sh", "-c", STAYS)
    (pid,) = worker.supervisor_pids()
    left = wait_until(lambda: len(tree := below(pid)) >= 3 and tree, "the whole tree")
    obstacle = worker.state / "ends" / f"{worker.incarnation}.s1.log"
    obstacle.mkdir()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(alive, left)), "the end of all that it left")
    # Not told yet that it ended: whoever asks now must not take its tasks for ended.
    assert "s1" in names(launcher)
    obstacle.rmdir()
    assert launcher.event("supervisor_ended")["tasks"] == [as_id(key)]
    assert names(launcher) == ["s2"]


def test_an_added_supervisor_is_named_and_takes_tasks(worker: Worker) -> None:
    launcher = worker.connect()
    launcher.send({"op": "add_supervisor"})
    assert launcher.event("supervisors")["names"] == ["s1", "s2"]
    assert facts(worker.supervisor("s2").run("true"))[0] == "succeeded"


def test_a_retired_supervisor_goes_when_it_is_empty_and_its_end_is_told(worker: Worker) -> None:
    launcher = worker.connect()
    launcher.send({"op": "add_supervisor"})
    launcher.event("supervisors")
    supervisor = worker.supervisor("s2")
    key = running(supervisor, "sleep", "60")
    assert supervisor.call({"op": "retire"})["ok"]
    assert supervisor.try_start("true")[1]["code"] == "retired"
    supervisor.stop(key)
    supervisor.end(key)
    assert launcher.event("supervisor_ended") == {
        "v": 1,
        "event": "supervisor_ended",
        "name": "s2",
        "tasks": [],
    }
    assert names(launcher) == ["s1"]


def test_supervisors_hold_no_descriptor_of_the_launcher_or_of_each_other(worker: Worker) -> None:
    launcher = worker.connect()
    for _ in range(3):
        launcher.send({"op": "add_supervisor"})
        launcher.event("supervisors")
    for name in names(launcher):
        worker.supervisor(name)
    counts = {len(os.listdir(f"/proc/{pid}/fd")) for pid in worker.supervisor_pids()}
    assert len(counts) == 1


# --- the end


def test_a_stopped_worker_has_stopped_its_tasks_and_leaves_nothing(worker: Worker) -> None:
    running(worker.supervisor(), "sh", "-c", STAYS)
    run_directory, left = worker.run_directory, worker.pids()
    worker.process.send_signal(signal.SIGTERM)
    assert end_of_launcher(worker) < 2.0 + 0.5 + 5
    assert [pid for pid in left if alive(pid)] == []
    assert ends_of(worker) == [("stopped", "worker_shutdown")]
    assert not run_directory.exists()


def test_a_hung_server_does_not_hold_the_end(begin: Callable[..., Worker]) -> None:
    worker = begin(behaviour="hang", grace_seconds=0.5)
    running(worker.supervisor(), "sh", "-c", STAYS)
    worker.process.send_signal(signal.SIGTERM)
    # grace and handover and 5 s
    assert end_of_launcher(worker) < 0.5 + 0.5 + 5
    assert ends_of(worker) == [("stopped", "worker_shutdown")]


def test_the_launcher_goes_with_its_last_task_and_server_not_at_its_last_moment(
    begin: Callable[..., Worker],
) -> None:
    worker = begin(behaviour="slow", grace_seconds=2.0, handover_seconds=20.0)
    running(worker.supervisor(), "sh", "-c", STAYS)
    worker.process.send_signal(signal.SIGTERM)
    assert end_of_launcher(worker, 30) < 6
    assert ends_of(worker) == [("stopped", "worker_shutdown")]


def test_a_second_sigterm_is_at_once(begin: Callable[..., Worker]) -> None:
    worker = begin(behaviour="hang", grace_seconds=600.0)
    running(worker.supervisor(), "sh", "-c", STAYS)
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "launcher_stopping" in worker.errors.read_text(), "the first is acted on")
    worker.process.send_signal(signal.SIGTERM)
    assert end_of_launcher(worker) < 3
    assert ends_of(worker) == [("stopped", "worker_shutdown")]


def test_nothing_lives_on_when_the_launcher_is_killed(worker: Worker) -> None:
    running(worker.supervisor(), "sh", "-c", STAYS)
    left = worker.pids()
    worker.process.kill()
    wait_until(lambda: not any(map(alive, left)), "the end of all below it")
    assert ends_of(worker) == [("failed", "supervisor_lost")]


@pytest.fixture
def signals_held() -> Iterator[None]:
    """As the worker's app holds them when it becomes the launcher: processes made now begin so."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.usefixtures("signals_held")
def test_a_sigterm_that_comes_before_the_launcher_is_ready_is_acted_on(begin: Callable[..., Worker]) -> None:
    worker = begin()
    worker.process.send_signal(signal.SIGTERM)
    assert end_of_launcher(worker) < 5
    said = [json.loads(line)["event"] for line in worker.errors.read_text().splitlines()]
    assert "launcher_stopping" in said


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.15, 0.2])
def test_a_sigterm_at_any_moment_of_the_start_ends_the_worker_soon(
    begin: Callable[..., Worker], delay: float
) -> None:
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    worker = begin(grace_seconds=5.0)
    signal.pthread_sigmask(signal.SIG_SETMASK, held)
    select.select([], [], [], delay)
    worker.process.send_signal(signal.SIGTERM)
    assert end_of_launcher(worker) < 4


def test_what_launcher_and_supervisors_say_is_in_the_workers_log(
    begin: Callable[..., Worker], tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    worker = begin(log_file=str(log))
    wait_until(lambda: worker.server_starts, "a server")
    worker.process.send_signal(signal.SIGTERM)
    assert end_of_launcher(worker) < 4
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert [e for e in events if e.startswith("launcher_")] == [
        "launcher_started",
        "launcher_stopping",
        "launcher_stopped",
    ]
    assert worker.errors.read_text() == ""


def test_a_server_that_cannot_be_executed_is_an_event_with_the_reason(
    begin: Callable[..., Worker], tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    worker = begin(log_file=str(log), server_argv=["/no/such/interpreter"])
    wait_until(lambda: log.exists() and "cannot be executed" in log.read_text(), "the event")
    worker.process.send_signal(signal.SIGTERM)
    assert end_of_launcher(worker) < 4
    events = [json.loads(line) for line in log.read_text().splitlines()]
    (told, *_) = [event for event in events if "cannot be executed" in event.get("reason", "")]
    assert (told["event"], told["level"]) == ("server_ended", "error")
    assert "No such file or directory" in told["reason"]


def test_a_log_that_cannot_be_opened_is_said_before_anything_is_started(begin: Callable[..., Worker]) -> None:
    worker = begin(log_file="/no/such/directory/worker.log")
    assert worker.process.wait(20) == 2
    (line,) = worker.errors.read_text().splitlines()
    assert line.startswith(
        "jobcluster-worker: jobs.log_file: /no/such/directory/worker.log cannot be opened: "
    )
    assert not worker.server_starts


def test_two_launchers_never_share_a_state(begin: Callable[..., Worker]) -> None:
    worker = begin(settings_file="/etc/jobcluster/worker.toml")
    wait_until(lambda: worker.server_starts, "a server")
    other = worker._begin("clean", None)
    assert other.wait(20) == 2
    last = worker.errors.read_text().splitlines()[-1]
    assert last.startswith("/etc/jobcluster/worker.toml: worker.state_directory: ")
    assert "another worker runs with it" in last


# --- rest


def switches(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if "ctxt_switches" in line)


def test_an_idle_launcher_and_its_supervisor_are_never_woken(worker: Worker) -> None:
    supervisor = worker.supervisor()
    supervisor.run("true", timeout_seconds=1)
    running(supervisor, "sleep", "60")
    pids = [worker.process.pid, *worker.supervisor_pids()]
    # What is still to be done for the ended one (the last flush of its index) is done by then.
    wait_until(lambda: is_quiet(pids, 0.3), "rest")
    before = [switches(pid) for pid in pids]
    select.select([], [], [], 1.0)
    assert [switches(pid) for pid in pids] == before


def is_quiet(pids: list[int], seconds: float) -> bool:
    before = [switches(pid) for pid in pids]
    select.select([], [], [], seconds)
    return [switches(pid) for pid in pids] == before


def test_tasks_leave_no_descriptor_behind_however_they_end(worker: Worker) -> None:
    supervisor = worker.supervisor()
    supervisor.run("true")
    (pid,) = worker.supervisor_pids()
    before = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(5):
        supervisor.run("sh", "-c", "echo; exit 3", stdin="YQ==", files={"a/b": "x"})
        supervisor.run("no-such-program")
        supervisor.run("cat", stdin="no base64!")
        supervisor.run("sh", "-c", "setsid sleep 60 &")
        supervisor.run("sleep", "60", timeout_seconds=0.05)
        key = supervisor.start("sleep", "60", prepare_only=True)
        supervisor.stop(key)
        supervisor.end(key)
    assert len(os.listdir(f"/proc/{pid}/fd")) == before
