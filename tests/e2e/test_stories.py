"""What the README promises, done against the real containers."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.api import Api
from tests.e2e.stack import Stack, inspect


def test_three_workers_have_three_ids_and_three_containers(stack: Stack, api: Api, three: set[str]) -> None:
    assert len({stack.container_of(worker_id, api) for worker_id in three}) == 3
    for worker in api.workers():
        assert set(worker["enforced"]) == {"cpu", "memory", "io", "pids"}


def test_the_shortest_body_runs_a_template_on_a_named_worker(api: Api, three: set[str]) -> None:
    worker_id = min(three)
    job = api.call(
        "POST", "/v1/jobs", 201, {"worker_id": worker_id, "path": "worker/scripts/run.sh", "command": "bash"}
    )
    path = f"/v1/workers/{worker_id}/jobs/{job['job_id']}"
    ended = api.call("GET", path, 200, wait=30)
    assert (ended["state"], ended["reason"], ended["exit_code"]) == ("succeeded", "exited", 0)
    assert ended["worker_id"] == worker_id
    assert api.http.get(f"{path}/output").content
    assert api.call("POST", f"{path}/stop", 200)["state"] == "succeeded"


def test_a_template_runs_by_its_relative_path_alone(api: Api, three: set[str]) -> None:
    job = api.run(path="hello.sh")
    assert job["state"] == "succeeded", job
    assert api.output(job["job_id"])


def test_jobs_spread_over_the_workers(api: Api, three: set[str]) -> None:
    jobs = [api.start(command="sleep 3") for _ in range(9)]
    by_worker = [api.running(j["job_id"])["worker_id"] for j in jobs]
    assert {by_worker.count(w) for w in three} == {3}
    assert {api.ended(j["job_id"])["state"] for j in jobs} == {"succeeded"}


def test_many_short_jobs_each_tell_their_own_exit_code(api: Api, three: set[str]) -> None:
    def one(number: int) -> tuple[int, int, bytes]:
        job = api.run(command=["sh", "-c", f"echo {number}; exit {number % 7}"])
        return number, job["exit_code"], api.output(job["job_id"])

    with ThreadPoolExecutor(8) as pool:
        for number, code, output in pool.map(one, range(100)):
            assert (code, output) == (number % 7, f"{number}\n".encode())


def test_python_with_files_arguments_environment_and_stdin(api: Api, three: set[str]) -> None:
    script = "import os, sys, part\nprint(part.WORD, sys.argv[1:], os.environ['COLOUR'], sys.stdin.read())\n"
    job = api.run(
        command="python3",
        path="main.py",
        args=["a b", "c"],
        files={"main.py": script, "part.py": {"base64": base64.b64encode(b"WORD = 'part'").decode()}},
        env={"COLOUR": "blue"},
        stdin="from outside",
    )
    assert job["state"] == "succeeded", (job, api.output(job["job_id"]))
    assert api.output(job["job_id"]) == b"part ['a b', 'c'] blue from outside\n"


def test_output_is_followed_while_the_job_runs(api: Api, three: set[str]) -> None:
    job = api.start(command=["sh", "-c", "echo first; sleep 60"])
    assert api.read_first(job["job_id"], 6) == b"first\n"
    assert not api.job(job["job_id"])["done"]
    api.stop(job["job_id"], grace_seconds=1)
    assert api.ended(job["job_id"])["state"] == "stopped"


def test_stdout_and_stderr_are_kept_apart(api: Api, three: set[str]) -> None:
    job = api.run(command=["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (job["state"], job["reason"], job["exit_code"], job["error"]) == ("failed", "exited", 3, True)
    assert api.output(job["job_id"], stream="stdout") == b"out\n"
    assert api.output(job["job_id"], stream="stderr") == b"err\n"


def test_ends_are_told_apart(api: Api, three: set[str]) -> None:
    killed = api.run(command=["sh", "-c", "kill -9 $$"])
    assert (killed["reason"], killed["signal"], killed["exit_code"]) == ("signaled", "KILL", None)
    late = api.run(command="sleep 60", timeout_seconds=1)
    assert (late["state"], late["reason"]) == ("failed", "timed_out")
    missing = api.run(command="no-such-program-anywhere")
    assert (missing["state"], missing["reason"]) == ("failed", "start_failed")
    assert "no-such-program-anywhere" in missing["error_text"]


def test_a_stop_takes_the_whole_tree(stack: Stack, api: Api, three: set[str]) -> None:
    tree = "trap '' TERM; setsid sleep 4711 & (sleep 4711 &) ; echo up; sleep 4711; sleep 4711"
    job = api.start(command=["sh", "-c", tree])
    assert api.read_first(job["job_id"], 3) == b"up\n"
    api.stop(job["job_id"], grace_seconds=1)
    assert api.ended(job["job_id"], 20)["reason"] == "stopped"
    for container in stack.containers("worker"):
        assert "4711" not in stack.processes(container)


def test_an_idempotency_key_makes_one_job(api: Api, three: set[str]) -> None:
    def post(_: int) -> tuple[int, str]:
        answer = api.http.post("/v1/jobs", json={"command": "true"}, headers={"Idempotency-Key": "e2e-one"})
        return answer.status_code, answer.json().get("job_id", "")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(16)))
    assert {status for status, _ in answers} <= {200, 201, 409}
    assert [status for status, _ in answers].count(201) == 1
    assert len({job_id for status, job_id in answers if status != 409}) == 1


def test_a_restart_of_the_whole_project_keeps_ids_and_jobs(stack: Stack, api: Api, three: set[str]) -> None:
    job = api.run(command="echo kept")
    stack.run("stop")
    assert {inspect(c)["State"]["ExitCode"] for c in stack.containers("worker")} == {0}
    stack.scale(3)
    assert api.wait_ready(3) == three
    assert api.job(job["job_id"]) == job
    assert api.output(job["job_id"]) == b"kept\n"
