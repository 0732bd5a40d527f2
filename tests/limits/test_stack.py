"""Limits from the HTTP call to the kernel's files and back, with a real controller and a real worker."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import Cluster, eventually, running_cluster

MIB = 1 << 20
GROUPS = Path("/sys/fs/cgroup")

HOG = "x = bytearray()\nwhile True: x += b'x' * (1 << 20)"
CHILD_HOG = (
    f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOG!r}]); print('leader goes on')"
)
CACHE = "with open('f', 'wb') as f:\n    for _ in range(160): f.write(b'x' * (1 << 20))\nprint('written')"
BURST = "import time; x = b'x' * (40 << 20); time.sleep(0.2)"
FORKS = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(600)
        made += 1
except OSError as error:
    print(made, error.errno, flush=True)
time.sleep(600)
"""
DIRECT = """
import mmap, os
page = mmap.mmap(-1, 1 << 18)
f = os.open('d', os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
for _ in range(24): os.write(f, page)
"""


@pytest.fixture(scope="module")
def stack(scratch: Path) -> Iterator[Cluster]:
    home = Path(tempfile.mkdtemp(dir=scratch, prefix="stack-"))
    limits = {
        "limits": {"require": True},
        "limits.max": {"pids": 400},
        "limits.default.io": {"read_iops": 90_000},
    }
    default = {"limits.default": {"memory": "512MiB"}}
    with running_cluster(home, 1, worker_settings=limits, controller_settings=default) as started:
        yield started
    shutil.rmtree(home)


def python(code: str, **spec: Any) -> dict[str, Any]:
    return {"command": "/usr/bin/python3", "path": "main.py", "files": {"main.py": code}, **spec}


def leaf_of(job_id: str) -> Path:
    """The leaf of the job's task, found by an outside reader."""
    found = eventually(lambda: [p for p in GROUPS.rglob(f"*{job_id}*") if p.is_dir()], what="the job's group")
    deepest = max(found[0].rglob("*"), key=lambda p: (p.is_dir(), len(p.parts)), default=found[0])
    return deepest if deepest.is_dir() else found[0]


def test_the_worker_says_that_everything_is_enforced(stack: Cluster) -> None:
    (worker,) = stack.list_workers()
    assert worker["enforced"] == {name: {"ok": True} for name in ("cpu", "memory", "io", "pids")}, worker


def test_what_was_asked_stands_in_the_kernels_files_while_the_job_runs_and_nothing_changes_it(
    stack: Cluster,
) -> None:
    asked = {"cpu": 0.5, "memory": "64MiB", "pids": 32, "io": {"write_bps": "2MiB"}}
    job = stack.post({"command": "sleep 600", "limits": asked})
    job = stack.until(job["job_id"], "running")
    leaf = leaf_of(job["job_id"])

    def kernel() -> tuple[str, ...]:
        names = ("cpu.max", "memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "io.max")
        return tuple((leaf / n).read_text().strip() for n in names if (leaf / n).exists())

    before = kernel()
    assert {"50000 100000", str(64 * MIB), "32"} <= set(before), before
    assert f"wbps={2 * MIB}" in before[-1]
    effective = job["limits"]["effective"]
    assert (effective["cpu"], effective["memory"], effective["pids"]) == (0.5, 64 * MIB, 32)
    assert effective["io"]["write_bps"] == 2 * MIB and effective["io"]["read_bps"] is None
    assert all(found["ok"] for found in job["limits"]["enforced"].values()), job["limits"]
    with stack.client() as client:
        for method in ("PUT", "PATCH", "POST"):
            answer = client.request(method, f"/v1/jobs/{job['job_id']}", json={"limits": {"memory": "1GiB"}})
            assert answer.status_code == 405
    assert kernel() == before
    stack.stop_job(job["job_id"])
    assert not leaf.exists()


def test_nothing_asked_is_the_cluster_s_default_the_worker_s_and_else_its_most_in_the_kernels_files(
    stack: Cluster,
) -> None:
    job = stack.post({"command": "sleep 600", "limits": {"cpu": 0.5}})
    job = stack.until(job["job_id"], "running")
    leaf = leaf_of(job["job_id"])
    assert job["limits"]["requested"]["memory"] is None and job["spec"]["limits"]["memory"] == 512 * MIB
    effective = job["limits"]["effective"]
    assert (effective["cpu"], effective["memory"], effective["pids"]) == (0.5, 512 * MIB, 400)
    assert effective["io"]["read_iops"] == 90_000
    files = {name: (leaf / name).read_text().strip() for name in ("memory.max", "pids.max", "io.max")}
    assert (files["memory.max"], files["pids.max"]) == (str(512 * MIB), "400")
    assert "riops=90000" in files["io.max"]
    stack.stop_job(job["job_id"])


def test_more_than_the_worker_allows_is_422_and_the_least_that_may_be_asked_for_works(stack: Cluster) -> None:
    with stack.client() as client:
        answer = client.post("/v1/jobs", json={"command": "true", "limits": {"pids": 401}})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/limits/pids"
    job = stack.run({"command": "true", "limits": {"cpu": 0.01, "memory": "2MiB", "pids": 1}}, wait=60)
    assert (job["state"], job["limits"]["effective"]["memory"]) == ("succeeded", 2 * MIB), job
    assert job["limits"]["effective"]["cpu"] == 0.01


def test_half_a_core_is_half_a_core_against_two_spinners(stack: Cluster) -> None:
    spinners = [stack.post(python("while True: pass", timeout_seconds=20)) for _ in range(2)]
    job = stack.run(python("while True: pass", timeout_seconds=6, limits={"cpu": 0.25}), wait=60)
    for spinner in spinners:
        stack.stop_job(spinner["job_id"], grace_seconds=1)
    usage = job["usage"]
    assert job["reason"] == "timed_out" and usage["cpu_throttled_seconds"] > 0, job
    assert usage["cpu_seconds"] <= 6 * 0.25 * 1.3, usage


def test_a_hog_is_oom_killed_and_a_signal_by_hand_is_not_called_so(stack: Cluster) -> None:
    job = stack.run(python(HOG, limits={"memory": "64MiB"}), wait=60)
    assert (job["state"], job["reason"], job["signal"]) == ("failed", "oom_killed", "KILL"), job
    assert job["usage"]["oom_kills"] == 1 and job["usage"]["memory_peak_bytes"] >= 60 * MIB
    by_hand = stack.run({"command": "sh -c 'kill -KILL $$'", "limits": {"memory": "64MiB"}})
    assert (by_hand["reason"], by_hand["usage"]["oom_kills"]) == ("signaled", 0)


def test_a_childs_oom_under_a_leader_that_exits_zero_stays_exited(stack: Cluster) -> None:
    job = stack.run(python(CHILD_HOG, limits={"memory": "64MiB", "oom": "process"}), wait=60)
    assert (job["state"], job["reason"], job["exit_code"], job["usage"]["oom_kills"]) == (
        "succeeded",
        "exited",
        0,
        1,
    ), job


def test_page_cache_is_reclaimed_and_a_short_burst_shows_in_the_peak(stack: Cluster) -> None:
    job = stack.run(python(CACHE, limits={"memory": "64MiB"}), wait=90)
    assert (job["state"], job["usage"]["oom_kills"]) == ("succeeded", 0), job
    burst = stack.run(python(BURST, limits={"memory": "128MiB"}), wait=60)
    assert burst["usage"]["memory_peak_bytes"] >= 40 * MIB


def test_a_fork_bomb_stays_within_its_limit_and_stops(stack: Cluster) -> None:
    job = stack.post(python(FORKS, limits={"pids": 32}))
    eventually(lambda: stack.output(job["job_id"]), what="the bomb's report")
    made, error = stack.output(job["job_id"]).split()[:2]
    assert int(made) <= 31 and error == b"11", (made, error)
    stopped = stack.stop_job(job["job_id"], grace_seconds=1)
    assert stopped["state"] == "stopped" and stopped["usage"]["pids_peak"] in (32, None)


def test_disk_io_is_limited_and_counted(stack: Cluster) -> None:
    began = time.monotonic()
    job = stack.run(python(DIRECT, limits={"io": {"write_bps": "2MiB"}}), wait=90)
    assert job["state"] == "succeeded", (job, stack.output(job["job_id"]))
    assert time.monotonic() - began >= 6 / 2 * 0.8  # 6 MiB at 2 MiB/s cannot be faster
    assert job["usage"]["io_write_bytes"] >= 6 * MIB


def test_a_task_never_runs_outside_its_leaf(stack: Cluster) -> None:
    jobs = [
        stack.run({"command": "sh -c 'cat /proc/self/cgroup & cat /proc/self/cgroup; wait'"})
        for _ in range(10)
    ]
    for job in jobs:
        for line in stack.output(job["job_id"]).decode().splitlines():
            assert job["job_id"] in line, line


def test_nothing_is_left_of_ended_jobs(stack: Cluster) -> None:
    job = stack.run({"command": "true"})
    eventually(lambda: not [p for p in GROUPS.rglob(f"*{job['job_id']}*") if p.is_dir()], what="no group")
    assert [p for p in GROUPS.rglob("jobs/*") if p.is_dir()] == []


def test_a_running_job_shows_what_the_kernel_has_counted_for_it_so_far(stack: Cluster) -> None:
    job = stack.post(python("print(1, flush=True)\nwhile True: pass", timeout_seconds=60))

    def seen() -> dict[str, Any]:
        with stack.client() as client:
            found: dict[str, Any] = client.get(f"/v1/jobs/{job['job_id']}").json()
        return found

    eventually(lambda: (seen()["usage"]["cpu_seconds"] or 0) > 0.2, what="cpu_seconds")
    now = seen()
    assert now["state"] == "running" and now["usage"]["memory_peak_bytes"] > 0, now["usage"]
    assert now["usage"]["pids_peak"] == 1 and now["usage"]["oom_kills"] == 0
    eventually(lambda: seen()["output"]["bytes"] == 2, what="the size of its output")
    ended = stack.stop_job(job["job_id"])
    assert ended["usage"]["cpu_seconds"] >= now["usage"]["cpu_seconds"]
