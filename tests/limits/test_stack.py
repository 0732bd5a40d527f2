"""What a job is told of its limits and of its use, by a real controller and a real worker."""

from typing import Any

from tests.integration.cluster import eventually
from tests.limits.placed import PlacedCluster, held, leaf_of, python

MIB = 1 << 20
HOG = "x = bytearray()\nwhile True: x += b'x' * (1 << 20)"
CHILD_HOG = (
    f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOG!r}]); print('leader goes on')"
)


def test_the_workers_say_that_everything_is_enforced(cluster: PlacedCluster) -> None:
    everything = {name: {"ok": True} for name in ("cpu", "memory", "io", "pids")}
    assert [worker["enforced"] for worker in cluster.list_workers()] == [everything] * 2


def test_nothing_asked_is_the_clusters_default_the_workers_and_else_its_most_in_the_kernels_files(
    cluster: PlacedCluster,
) -> None:
    job = cluster.post({"command": "sleep 600", "limits": {"cpu": 0.5}})
    job = cluster.until(job["job_id"], "running")
    assert job["limits"]["requested"]["memory"] is None and job["spec"]["limits"]["memory"] == 512 * MIB
    kernel = held(leaf_of(job["job_id"]))
    assert job["limits"]["effective"] == kernel
    assert (kernel["cpu"], kernel["memory"], kernel["pids"]) == (0.5, 512 * MIB, 400)
    assert kernel["io"]["read_iops"] == 90_000
    cluster.stop_job(job["job_id"])


def test_more_than_the_worker_allows_is_422_and_the_least_that_may_be_asked_for_works(
    cluster: PlacedCluster,
) -> None:
    body = {"command": "true", "limits": {"pids": 401}, "worker_id": cluster.worker_of(cluster.workers[0])}
    with cluster.client() as client:
        answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/limits/pids"
    job = cluster.run({"command": "true", "limits": {"memory": "2MiB", "pids": 1}})
    assert (job["state"], job["limits"]["effective"]["memory"]) == ("succeeded", 2 * MIB), job
    slow = cluster.post({"command": "sleep 600", "limits": {"cpu": 0.01}})["job_id"]
    eventually(lambda: held(leaf_of(slow))["cpu"] == 0.01, what="the least that the kernel takes")
    assert cluster.stop_job(slow, signal="KILL")["limits"]["effective"]["cpu"] == 0.01


def test_a_childs_oom_under_a_leader_that_exits_zero_stays_exited(cluster: PlacedCluster) -> None:
    job = cluster.run(python(CHILD_HOG, limits={"memory": "64MiB", "oom": "process"}))
    told = (job["state"], job["reason"], job["exit_code"], job["usage"]["oom_kills"])
    assert told == ("succeeded", "exited", 0, 1), job


def test_a_running_job_shows_what_the_kernel_has_counted_for_it_so_far(cluster: PlacedCluster) -> None:
    job = cluster.post(python("print(1, flush=True)\nwhile True: pass", timeout_seconds=60))

    def seen() -> dict[str, Any]:
        return cluster.job(job["job_id"])

    eventually(lambda: (seen()["usage"]["cpu_seconds"] or 0) > 0.2, what="cpu_seconds")
    now = seen()
    assert now["state"] == "running" and now["usage"]["memory_peak_bytes"] > 0, now["usage"]
    assert now["usage"]["pids_peak"] == 1 and now["usage"]["oom_kills"] == 0
    eventually(lambda: seen()["output"]["bytes"] == 2, what="the size of its output")
    ended = cluster.stop_job(job["job_id"])
    assert ended["usage"]["cpu_seconds"] >= now["usage"]["cpu_seconds"]
