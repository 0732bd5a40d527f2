"""How a job ends, and that the answer tells what happened first."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.integration.cluster import Cluster, eventually, marked, running_cluster

END = ("state", "reason", "exit_code", "signal")


@pytest.mark.parametrize(
    ("spec", "end"),
    [
        ({"command": "true"}, ("succeeded", "exited", 0, None)),
        ({"command": "sh -c 'exit 127'"}, ("failed", "exited", 127, None)),
        ({"command": "sh -c 'exit 137'"}, ("failed", "exited", 137, None)),
        ({"command": "sh -c 'kill -KILL $$'"}, ("failed", "signaled", None, "KILL")),
        ({"command": "sh -c 'kill -TERM $$'"}, ("failed", "signaled", None, "TERM")),
        ({"command": "sleep 60", "timeout_seconds": 0.3}, ("failed", "timed_out", None, "TERM")),
        (
            {"command": "sh -c 'trap \"exit 0\" TERM; sleep 60 & wait'", "timeout_seconds": 0.5},
            ("failed", "timed_out", 0, None),
        ),
        (
            {"command": "yes", "output": {"max_bytes": 100_000, "on_limit": "stop"}},
            ("failed", "output_limit", None, "TERM"),
        ),
    ],
)
def test_the_first_cause_decides(cluster: Cluster, spec: dict[str, Any], end: tuple[object, ...]) -> None:
    job = cluster.run(spec)
    assert tuple(job[k] for k in END) == end, job


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ({"command": "no-such-program-anywhere"}, ("ENOENT", "no-such-program-anywhere")),
        ({"command": "/no/such/program"}, ("ENOENT", "/no/such/program")),
        ({"command": "/etc/passwd"}, ("EACCES", "/etc/passwd")),
        ({"path": "text", "files": {"text": "no shebang, no ELF"}}, ("ENOEXEC", "text")),
        ({"command": "bash", "path": "not/there.sh"}, ("ENOENT", "not/there.sh")),
        ({"command": "true", "cwd": "/not/there"}, ("ENOENT", "/not/there")),
        ({"path": "s", "files": {"s": "#!/no/such/interpreter\n"}}, ("ENOENT", "s")),
    ],
)
def test_what_cannot_be_executed_is_start_failed_and_named(
    cluster: Cluster, spec: dict[str, Any], names: tuple[str, ...]
) -> None:
    job = cluster.run(spec)
    assert tuple(job[k] for k in END) == ("failed", "start_failed", None, None), job
    for name in names:
        assert name in job["error_text"], job["error_text"]


def test_a_stopped_job_is_stopped_though_it_exits_zero(cluster: Cluster) -> None:
    job = cluster.post(
        {"command": ["sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"]}
    )
    eventually(lambda: b"up" in cluster.output(job["job_id"]), what="its output")
    stopped = cluster.stop_job(job["job_id"])
    assert tuple(stopped[k] for k in END) == ("stopped", "stopped", 0, None)
    assert cluster.output(job["job_id"], stream="stdout") == b"up\nbye\n"
    assert cluster.stop_job(job["job_id"])["finished_at"] == stopped["finished_at"]


def test_stop_sends_the_signal_that_was_asked_for(cluster: Cluster) -> None:
    job = cluster.post({"command": ["sh", "-c", "trap 'exit 9' INT; echo up; while :; do sleep 0.05; done"]})
    eventually(lambda: b"up" in cluster.output(job["job_id"]), what="its output")
    assert cluster.stop_job(job["job_id"], signal="SIGINT")["exit_code"] == 9


TREE = """
trap '' TERM
setsid bash -c 'trap "" TERM; echo $0 >/dev/null; exec -a MARK-setsid sleep 1000' &
(setsid bash -c '(exec -a MARK-double sleep 1000) & exit 0' &)
nohup bash -c 'exec -a MARK-nohup sleep 1000' >/dev/null 2>&1 &
echo up
while :; do sleep 0.05; done
"""


def test_stop_ends_the_whole_tree_setsid_double_fork_nohup_and_ignored_term(cluster: Cluster) -> None:
    mark = f"jobclustertree{time.monotonic_ns()}"
    tree = TREE.replace("MARK", mark)
    job = cluster.post({"command": "bash", "path": "tree.sh", "files": {"tree.sh": tree}})
    eventually(lambda: len(marked(mark)) >= 3, what="three marked processes")
    stopped = cluster.stop_job(job["job_id"], grace_seconds=0.5)
    assert (stopped["state"], stopped["reason"], stopped["signal"]) == ("stopped", "stopped", "KILL")
    assert marked(mark) == {}


def test_a_daemonised_child_that_keeps_the_pipe_open_does_not_hold_the_end(cluster: Cluster) -> None:
    mark = f"jobclusterdaemon{time.monotonic_ns()}"
    script = f"setsid bash -c 'trap \"\" TERM HUP; exec -a {mark} sleep 1000' & sleep 0.2; echo done"
    job = cluster.run({"command": "bash -c", "args": [script]})
    assert tuple(job[k] for k in END) == ("succeeded", "exited", 0, None)
    assert cluster.output(job["job_id"]) == b"done\n"
    assert marked(mark) == {}


def test_term_ends_a_plain_sleep_long_before_the_grace(cluster: Cluster) -> None:
    job = cluster.post({"command": "sleep 1000"})
    cluster.until(job["job_id"], "running")
    stopped = cluster.stop_job(job["job_id"], wait=30, grace_seconds=600)
    assert (stopped["state"], stopped["signal"]) == ("stopped", "TERM")


def test_a_second_stop_that_is_stricter_ends_a_job_long_before_the_first_ones_grace(cluster: Cluster) -> None:
    job = cluster.post({"command": ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"]})
    eventually(lambda: b"up" in cluster.output(job["job_id"]), what="its output")
    assert cluster.stop_job(job["job_id"], wait=None, grace_seconds=60)["state"] == "stopping"
    assert cluster.stop_job(job["job_id"], wait=None, grace_seconds=600)["state"] == "stopping"
    ended = cluster.stop_job(job["job_id"], wait=30, signal="KILL", grace_seconds=0)
    assert tuple(ended[k] for k in END) == ("stopped", "stopped", None, "KILL")


def test_a_stop_hastens_the_end_of_a_job_in_the_grace_of_its_timeout(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running_cluster(
        tmp_path_factory.mktemp("grace"), workers=1, worker_settings={"shutdown": {"grace_seconds": 600}}
    ) as patient:
        job = patient.post(
            {"command": ["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"], "timeout_seconds": 1}
        )
        patient.until(job["job_id"], "stopping")
        ended = patient.stop_job(job["job_id"], wait=30, signal="KILL")
        assert tuple(ended[k] for k in END) == ("failed", "timed_out", None, "KILL")


def test_a_queued_job_is_stopped_at_once_and_says_why_it_waited(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running_cluster(
        tmp_path_factory.mktemp("small"), workers=1, worker_settings={"jobs": {"max_tasks": 1}}
    ) as small:
        first = small.post({"command": "sleep 600"})
        small.until(first["job_id"], "running")
        waits = small.post({"command": "true"})
        assert waits["state"] == "queued" and "1 of 1 task" in waits["queue_reason"], waits
        third = small.post({"command": "echo third"})
        stopped = small.stop_job(waits["job_id"], wait=None)
        assert (stopped["state"], stopped["reason"], stopped["started_at"]) == ("stopped", "stopped", None)
        small.stop_job(first["job_id"])
        assert small.job(third["job_id"], wait=30)["state"] == "succeeded"
