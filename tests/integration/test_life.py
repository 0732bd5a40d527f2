"""Workers and controllers that come, go, crash and return."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from tests.integration.cluster import Cluster, descendants, eventually, running_cluster

COUNT = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo $i; sleep 0.02; done; exit 5"


def test_kill_9_of_a_workers_server_disturbs_none_of_ten_counting_jobs(own_cluster: Cluster) -> None:
    worker = own_cluster.workers[0]
    before = own_cluster.list_workers()[0]
    jobs = [own_cluster.post({"command": ["sh", "-c", COUNT]}) for _ in range(10)]
    for job in jobs:
        own_cluster.until(job["job_id"], "running")
    server = own_cluster.server_pid(worker)
    os.kill(server, signal.SIGKILL)
    eventually(lambda: own_cluster.server_pid(worker) != server, what="another server")
    for job in jobs:
        end = own_cluster.job(job["job_id"], wait=60)
        assert (end["state"], end["reason"], end["exit_code"]) == ("failed", "exited", 5), end
        assert own_cluster.output(job["job_id"]).decode().split() == [str(n) for n in range(1, 201)]
    after = own_cluster.wait_ready(1)[0]
    assert after["worker_id"] == before["worker_id"]


def test_the_server_is_no_jobs_ancestor_and_supervisors_are_the_launchers_children(
    own_cluster: Cluster,
) -> None:
    worker = own_cluster.workers[0]
    job = own_cluster.post({"command": "sleep 600"})
    own_cluster.until(job["job_id"], "running")
    server = own_cluster.server_pid(worker)
    leader = next(p for p, line in descendants(worker.pid).items() if line == "sleep 600")
    parent = int(Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()[1])
    grandparent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent != server and grandparent == worker.pid
    assert descendants(server) == {}
    own_cluster.stop_job(job["job_id"])


def test_kill_9_of_a_supervisor_ends_its_jobs_as_supervisor_lost_and_leaves_no_process(
    own_cluster: Cluster,
) -> None:
    worker = own_cluster.workers[0]
    job = own_cluster.post({"command": ["sh", "-c", "echo head; setsid sleep 987654 & sleep 987653"]})
    eventually(lambda: b"head" in own_cluster.output(job["job_id"]), what="its output")
    leader = next(p for p, line in descendants(worker.pid).items() if line.endswith("sleep 987653"))
    while True:
        parent = int(Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()[1])
        if int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1]) == worker.pid:
            break
        leader = parent
    os.kill(parent, signal.SIGKILL)
    end = own_cluster.job(job["job_id"], wait=30)
    assert (end["state"], end["reason"]) == ("failed", "supervisor_lost"), end
    assert own_cluster.output(job["job_id"]) == b"head\n"
    assert not [line for line in descendants(worker.pid).values() if "98765" in line]
    assert own_cluster.run({"command": "true"})["state"] == "succeeded"


def test_sigterm_stops_jobs_reports_their_ends_deregisters_and_exits_zero(own_cluster: Cluster) -> None:
    worker = own_cluster.workers[0]
    polite = own_cluster.post({"command": "sleep 600"})
    stubborn = own_cluster.post(
        {"command": ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"]}
    )
    own_cluster.until(polite["job_id"], "running")
    eventually(lambda: b"up" in own_cluster.output(stubborn["job_id"]), what="its output")
    below = descendants(worker.pid)
    assert worker.stop(within=60) == 0
    for job, sig in ((polite, "TERM"), (stubborn, "KILL")):
        end = own_cluster.job(job["job_id"])
        assert (end["state"], end["reason"], end["signal"]) == ("stopped", "worker_shutdown", sig), end
    assert own_cluster.list_workers() == []
    with own_cluster.client() as client:
        assert [
            w["state"] for w in client.get("/v1/workers", params={"state": "gone"}).json()["workers"]
        ] == ["gone"]
        refused = client.post("/v1/jobs", json={"command": "true", "worker_id": polite["worker_id"]})
        assert refused.status_code == 409, refused.text
    assert not [p for p in below if Path(f"/proc/{p}").exists()]


def test_a_second_sigterm_ends_the_worker_at_once(own_cluster: Cluster) -> None:
    worker = own_cluster.workers[0]
    job = own_cluster.post({"command": ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"]})
    eventually(lambda: b"up" in own_cluster.output(job["job_id"]), what="its output")
    own_cluster.workers[0].signal(signal.SIGTERM)
    own_cluster.until(job["job_id"], "stopping", "stopped")
    below = descendants(worker.pid)
    worker.signal(signal.SIGTERM)
    worker.wait(within=20)
    assert not [p for p in below if Path(f"/proc/{p}").exists()]


def test_a_worker_whose_whole_tree_is_killed_becomes_unreachable_then_lost_and_so_does_its_job(
    tmp_path: Path,
) -> None:
    lease = {"lease": {"heartbeat_seconds": 0.2, "unreachable_seconds": 1, "lost_seconds": 4}}
    with running_cluster(tmp_path, workers=1, controller_settings=lease) as cluster:
        worker = cluster.workers[0]
        job = cluster.post({"command": "sleep 600"})
        cluster.until(job["job_id"], "running")
        tree = [worker.pid, *descendants(worker.pid)]
        for pid in tree:
            with contextlib.suppress(
                ProcessLookupError
            ):  # the kernel may have been faster: they die with the launcher
                os.kill(pid, signal.SIGKILL)
        worker.wait()
        seen: list[str] = []

        def state() -> str:
            now = str(cluster.list_workers()[0]["state"])
            if not seen or seen[-1] != now:
                seen.append(now)
            return now

        eventually(lambda: state() == "lost", within=30, what="a lost worker")
        assert seen in (["ready", "unreachable", "lost"], ["unreachable", "lost"])
        end = cluster.job(job["job_id"], wait=10)
        assert (end["state"], end["reason"], end["error"]) == ("lost", "worker_lost", True)
        worker.start()
        assert cluster.wait_ready(1)[0]["worker_id"] == job["worker_id"]
        assert cluster.run({"command": "true"})["state"] == "succeeded"


def test_workers_may_start_before_the_controller(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    try:
        cluster.add_worker()
        log = cluster.directory / "worker-1.log"
        eventually(lambda: descendants(cluster.workers[0].pid), what="the worker's processes")
        cluster.controller.start()
        cluster.wait_ready(1)
        assert cluster.run({"command": "true"})["state"] == "succeeded", log.read_text()
    finally:
        cluster.close()


def test_a_controller_killed_right_after_the_201_has_the_job_when_it_is_back(own_cluster: Cluster) -> None:
    running = own_cluster.post({"command": ["sh", "-c", COUNT]})
    own_cluster.until(running["job_id"], "running")
    job = own_cluster.post({"command": "true", "name": "kept"})
    own_cluster.controller.signal(signal.SIGKILL)
    own_cluster.controller.wait()
    own_cluster.controller.start()
    own_cluster.wait_ready(1)
    kept = own_cluster.job(job["job_id"], wait=30)
    assert kept["name"] == "kept" and kept["state"] == "succeeded", kept
    end = own_cluster.job(running["job_id"], wait=30)
    assert (end["state"], end["exit_code"]) == ("failed", 5), end
    assert own_cluster.output(running["job_id"]).decode().split() == [str(n) for n in range(1, 201)]


def test_sigterm_to_the_controller_ends_it_with_zero_and_disturbs_no_job(own_cluster: Cluster) -> None:
    job = own_cluster.post({"command": ["sh", "-c", COUNT]})
    own_cluster.until(job["job_id"], "running")
    assert own_cluster.controller.stop() == 0
    own_cluster.controller.start()
    own_cluster.wait_ready(1)
    end = own_cluster.job(job["job_id"], wait=30)
    assert (end["state"], end["exit_code"]) == ("failed", 5)
