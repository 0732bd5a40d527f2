"""How tasks start and end, as real processes under a real supervisor."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.worker.launcher.connection import Supervisor, facts, text_of
from tests.unit.worker.launcher.worker import Worker


@pytest.mark.parametrize("code", [1, 3, 127, 137, 255])
def test_a_program_that_exits_with_a_code_has_failed_with_that_code(
    supervisor: Supervisor, code: int
) -> None:
    assert facts(supervisor.run("sh", "-c", f"exit {code}")) == ("failed", "exited", code, "")


def test_a_program_that_exits_with_0_has_succeeded_after_starting_and_running(supervisor: Supervisor) -> None:
    key = supervisor.start("true")
    task = supervisor.end(key)
    assert facts(task) == ("succeeded", "exited", 0, "")
    assert 0 < task["started_at_us"] <= task["finished_at_us"] <= time.time_ns() // 1000
    assert supervisor.history[key][-1] == "succeeded"
    assert set(supervisor.history[key]) <= {"starting", "running", "succeeded"}


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV"])
def test_a_program_killed_by_a_signal_not_ours_has_failed_signaled(supervisor: Supervisor, name: str) -> None:
    task = supervisor.run("sh", "-c", f"kill -{name} $$")
    assert facts(task) == ("failed", "signaled", None, name)


def test_a_timeout_ends_the_task_as_timed_out_whatever_code_it_exits_with(supervisor: Supervisor) -> None:
    task = supervisor.run("sh", "-c", "trap 'exit 0' TERM; sleep 60 & wait", timeout_seconds=0.2)
    assert facts(task) == ("failed", "timed_out", 0, "")


def test_a_timeout_kills_after_the_grace_what_ignores_term(begin: Callable[..., Worker]) -> None:
    supervisor = begin(grace_seconds=0.2).supervisor()
    task = supervisor.run("sh", "-c", "trap '' TERM; while :; do sleep 1; done", timeout_seconds=0.2)
    assert facts(task) == ("failed", "timed_out", None, "KILL")


@pytest.mark.parametrize(
    ("spec", "words", "said"),
    [
        ({}, ["no-such-program"], "ENOENT: 'no-such-program': not found in PATH"),
        ({}, ["/no/such/program"], "ENOENT: '/no/such/program'"),
        ({}, ["/etc/passwd"], "EACCES: '/etc/passwd'"),
        ({}, ["/etc"], "EACCES: '/etc'"),
        ({"path": "missing.sh"}, ["sh"], "ENOENT: template 'missing.sh'"),
        ({"path": "/missing.sh"}, ["sh"], "ENOENT: '/missing.sh'"),
        ({"path": "plain", "files": {"plain": "echo hi\n"}}, [], "ENOEXEC: "),
        ({"path": "bad", "files": {"bad": "#!/no/such/interpreter\n"}}, [], "ENOENT: "),
        ({"cwd": "/no/such/directory"}, ["true"], "ENOENT: cwd '/no/such/directory'"),
        ({"cwd": "../.."}, ["true"], "EINVAL: cwd '../..'"),
        ({"files": {"../out": "x"}}, ["true"], "files: '../out'"),
        ({"files": {"/abs": "x"}}, ["true"], "files: '/abs'"),
    ],
)
def test_what_cannot_be_executed_ends_start_failed_and_names_it(
    supervisor: Supervisor, spec: dict[str, Any], words: list[str], said: str
) -> None:
    task = supervisor.run(*words, **spec)
    assert facts(task) == ("failed", "start_failed", None, "")
    assert said in task["error_text"]
    assert task["started_at_us"] == 0
    assert task["output"]["merged"]["bytes"] == 0


def test_a_template_that_is_a_link_out_of_the_directory_is_refused(worker: Worker) -> None:
    (worker.templates / "out.sh").symlink_to("/etc/passwd")
    task = worker.supervisor().run("sh", path="out.sh")
    assert facts(task)[:2] == ("failed", "start_failed")
    assert "out.sh" in task["error_text"] and "EACCES" in task["error_text"]


def test_a_template_sees_its_own_path_and_the_files_beside_it(worker: Worker) -> None:
    (worker.templates / "scripts").mkdir()
    (worker.templates / "scripts" / "run.sh").write_text('echo "$0" "$@"; cat "$(dirname "$0")/beside"\n')
    (worker.templates / "scripts" / "beside").write_text("found\n")
    task = worker.supervisor().run("sh", "-u", path="scripts/run.sh", args=["a b", "$HOME"])
    first, second = text_of(task).splitlines()
    assert first.endswith("/scripts/run.sh a b $HOME")
    assert second == "found"


def test_files_are_in_the_working_directory_executable_and_in_their_folders(supervisor: Supervisor) -> None:
    task = supervisor.run(
        path="bin/tool",
        args=["x"],
        files={
            "bin/tool": '#!/bin/sh\nstat -c %a bin/tool; echo "$0" "$1"; cat data/a; pwd',
            "data/a": "A\n",
        },
    )
    mode, called, data, cwd = text_of(task).splitlines()
    assert (mode, data) == ("755", "A")
    assert called == f"{cwd}/bin/tool x"
    work = Path(task["output"]["path"]).parent / "work"
    assert {path.stat().st_uid for path in (work, work / "bin", work / "data" / "a")} == {work.stat().st_uid}


def test_a_file_of_the_spec_wins_over_a_template_of_that_name(worker: Worker) -> None:
    (worker.templates / "run.sh").write_text("echo template\n")
    assert text_of(worker.supervisor().run("sh", path="run.sh", files={"run.sh": "echo file\n"})) == "file\n"


def test_a_relative_cwd_is_made_within_the_work_directory_and_is_home(supervisor: Supervisor) -> None:
    task = supervisor.run("sh", "-c", "pwd; echo $HOME; cat f", cwd="a/b", files={"f": "here\n"})
    cwd, home, content = text_of(task).splitlines()
    assert cwd == home and cwd.endswith("/a/b") and content == "here"


def test_an_absolute_cwd_is_used_as_it_is(supervisor: Supervisor) -> None:
    assert text_of(supervisor.run("pwd", cwd="/usr")) == "/usr\n"


@pytest.mark.parametrize("words", [["sh"], []])
def test_files_are_in_a_cwd_that_is_the_tasks_own_tmp(supervisor: Supervisor, words: list[str]) -> None:
    name = f"jobcluster-test-{os.getpid()}.sh"
    script = '#!/bin/sh\npwd; ls -l | grep -c jobcluster-test; echo "$0"; stat -c %U:%a "$0"'
    try:
        task = supervisor.run(*words, path=name, cwd="/tmp", files={name: script})
        cwd, count, called, owned = text_of(task).splitlines()
    finally:
        Path("/tmp", name).unlink(missing_ok=True)  # where a plain user has no /tmp of his own
    assert (cwd, count, called) == ("/tmp", "1", f"/tmp/{name}")
    assert owned.endswith(":755") and not owned.startswith("root")


def test_files_are_put_into_a_given_cwd_with_no_more_rights_than_the_tasks_own(
    scratch: Path, worker: Worker
) -> None:
    target = scratch / "target"
    target.mkdir(mode=0o500)
    task = worker.supervisor().run("true", cwd=str(target), files={"f": "x"})
    assert facts(task)[:2] == ("failed", "start_failed")
    assert task["error_text"].count(str(target)) == 1
    assert not list(target.iterdir())


def test_the_environment_is_built_from_nothing(supervisor: Supervisor) -> None:
    task = supervisor.run("env", "-0", env={"A": "line\nbreak", "LANG": "C"}, task_count=1)
    found = dict(entry.split("=", 1) for entry in text_of(task).split("\0") if entry)
    assert "SECRET" not in found and "STARTS_FILE" not in found
    assert (found["A"], found["LANG"]) == ("line\nbreak", "C")
    assert found["JOBCLUSTER_JOB_ID"] == task["job_id"]
    assert found["PATH"].startswith("/usr/local/sbin:")


def test_stdin_is_what_was_given_and_else_empty(supervisor: Supervisor) -> None:
    content = os.urandom(300_000)
    task = supervisor.run("sha256sum", stdin=base64.b64encode(content).decode())
    assert text_of(task).split()[0] == hashlib.sha256(content).hexdigest()
    assert text_of(supervisor.run("sh", "-c", "wc -c; readlink /proc/self/fd/0")) == "0\n/dev/null\n"


def test_a_process_has_three_descriptors_no_blocked_signal_and_a_session(supervisor: Supervisor) -> None:
    task = supervisor.run(
        "sh", "-c", "ls /proc/$$/fd | tr '\\n' ' '; grep -E 'Sig(Blk|Ign)' /proc/self/status"
    )
    lines = text_of(task).replace("\t", " ").splitlines()
    assert lines[0].startswith("0 1 2 ")
    blocked, ignored = (int(line.split()[-1], 16) for line in lines[:2])
    # The C library's posix_spawn leaves its own two signals, 32 and 33, ignored.
    assert (blocked, ignored & ~(0b11 << 31)) == (0, 0)


def test_stdout_and_stderr_are_kept_apart_and_one_pipe_keeps_them_together(supervisor: Supervisor) -> None:
    apart = supervisor.run("sh", "-c", "echo out; echo err >&2")
    assert (apart["output"]["stdout"]["bytes"], apart["output"]["stderr"]["bytes"]) == (4, 4)
    together = supervisor.run("sh", "-c", "echo out; echo err >&2", output={"separate": False})
    assert (together["output"]["stdout"]["bytes"], together["output"]["stderr"]["bytes"]) == (8, 0)
    assert text_of(together) == "out\nerr\n"


def test_a_megabyte_written_just_before_the_exit_is_whole(supervisor: Supervisor) -> None:
    script = "head -c 1000000 /dev/zero | tr '\\0' x"
    for _ in range(5):
        task = supervisor.run("sh", "-c", script)
        assert task["output"]["merged"] == {
            "bytes": 1_000_000,
            "sha256": hashlib.sha256(b"x" * 1_000_000).hexdigest(),
        }


def test_output_over_the_cap_is_cut_counted_and_the_program_goes_on(supervisor: Supervisor) -> None:
    task = supervisor.run("sh", "-c", "head -c 100000 /dev/zero; exit 5", output={"max_bytes": 1000})
    assert facts(task) == ("failed", "exited", 5, "")
    assert (task["output"]["merged"]["bytes"], task["output"]["dropped_bytes"]) == (1000, 99_000)


@pytest.mark.parametrize("asked", [{}, {"max_bytes": 1 << 30}])
def test_a_workers_own_cap_holds_whatever_the_spec_says(
    begin: Callable[..., Worker], asked: dict[str, int]
) -> None:
    supervisor = begin(output_max_bytes=1000).supervisor()
    kept = supervisor.run("head", "-c", "5000", "/dev/zero", output=asked)["output"]
    assert (kept["merged"]["bytes"], kept["dropped_bytes"]) == (1000, 4000)
    less = supervisor.run("head", "-c", "5000", "/dev/zero", output={"max_bytes": 10})["output"]
    assert (less["merged"]["bytes"], less["dropped_bytes"]) == (10, 4990)


def test_output_over_the_cap_ends_the_task_where_that_was_asked_for(supervisor: Supervisor) -> None:
    task = supervisor.run("yes", output={"max_bytes": 100_000, "on_limit": "stop"})
    assert facts(task)[:2] == ("failed", "output_limit")
    assert task["output"]["merged"]["bytes"] == 100_000


def test_a_limit_that_cannot_be_enforced_fails_the_start_where_limits_are_required(
    begin: Callable[..., Worker],
) -> None:
    supervisor = begin().supervisor()
    enforced = supervisor.run("true")["enforced"]
    if all(state["ok"] for state in enforced.values()):
        pytest.skip("this host enforces every limit")
    task = supervisor.run("true", limits={"memory_bytes": 1 << 26, "pids": 64, "cpu": 0.5})
    assert facts(task)[:2] == ("succeeded", "exited")
    assert all(state["why"] for state in task["enforced"].values() if not state["ok"])


def test_the_task_directory_is_closed_to_others_and_the_output_to_the_task(supervisor: Supervisor) -> None:
    task = supervisor.run("true")
    directory = Path(task["output"]["path"]).parent
    assert stat.S_IMODE((directory / "output").stat().st_mode) == 0o600
    assert stat.S_IMODE((directory / "work").stat().st_mode) == 0o700


def test_cpu_seconds_are_those_of_the_whole_tree(supervisor: Supervisor) -> None:
    burn = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
    task = supervisor.run("sh", "-c", f"( {burn} ) & wait; ( {burn} )")
    assert task["usage"]["cpu_seconds"] > 0.1


def test_cpu_seconds_of_what_was_left_behind_and_reaped_before_the_leader_ended_count(
    supervisor: Supervisor,
) -> None:
    burn = "import time; [0 for _ in iter(lambda: time.process_time() < 0.4, False)]"
    left = f"(python3 -c '{burn}' & echo $! > pid)"
    task = supervisor.run("sh", "-c", f"{left}; read p < pid; while [ -e /proc/$p ]; do sleep 0.01; done")
    assert task["usage"]["cpu_seconds"] >= 0.4


def test_signal_names_that_nobody_knows_are_refused(supervisor: Supervisor) -> None:
    key = supervisor.start("sleep", "60")
    supervisor.until(key, "running")
    assert supervisor.stop(key, signal="NONSENSE")["code"] == "invalid"
    assert supervisor.stop(key, signal="SIGINT")["ok"]
    assert facts(supervisor.end(key)) == ("stopped", "stopped", None, signal.Signals.SIGINT.name[3:])
