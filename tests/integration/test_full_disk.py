"""Full disks: under a worker everything goes on and the truth is told, and the store says yes to nothing it lost."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.integration.cluster import Cluster, eventually, running_cluster
from tests.integration.truth import MIB, reader, task_directory
from tests.unit.worker.full_disk import small_disk

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk"),
    pytest.mark.timeout(180),
]

DISK_BYTES = 8 * MIB
# More than the disk holds, in pieces; and what it wrote in all must be counted to the byte.
TOO_MUCH = 12_345_678
NEIGHBOUR = {"command": ["sh", "-c", "echo begun; while [ ! -e go ]; do sleep 0.05; done; exit 5"]}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Cluster]:
    """One worker of which everything lies on a small disk: outputs, work directories, state, log."""
    home = tmp_path / "worker-1"
    home.mkdir()
    with small_disk(home, DISK_BYTES), running_cluster(tmp_path, workers=1) as cluster:
        yield cluster


def free_bytes(directory: Path) -> int:
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize


@contextmanager
def filled(directory: Path, leave: int = 0) -> Iterator[None]:
    """Somebody else takes the disk, all but ``leave`` bytes, and gives it back."""
    ballast = directory / "ballast"
    try:
        with ballast.open("wb", buffering=0) as f:
            try:
                while (free := free_bytes(directory)) > leave:
                    f.write(bytes(min(65536, free - leave)))
            except OSError:
                pass
        yield
    finally:
        ballast.unlink()


def home_of(cluster: Cluster) -> Path:
    return cluster.directory / "worker-1"


def test_a_job_that_fills_the_disk_goes_on_and_every_byte_is_kept_or_counted(small: Cluster) -> None:
    neighbour = small.post(NEIGHBOUR)
    eventually(lambda: small.output(neighbour["job_id"]) == b"begun\n", what="the neighbour's first line")
    server = small.server_pid(small.workers[0])
    spec = {"command": ["sh", "-c", f"head -c {TOO_MUCH} /dev/zero; exit 3"]}
    job = small.run(spec)
    assert (job["state"], job["reason"], job["exit_code"]) == ("failed", "exited", 3), job
    output = job["output"]
    assert 0 < output["bytes"] < DISK_BYTES
    assert output["bytes"] + output["dropped_bytes"] == TOO_MUCH
    assert "ENOSPC" in job["error_text"] and str(output["dropped_bytes"]) in job["error_text"]
    for follow in ("true", "false"):
        kept = small.output(job["job_id"], follow=follow)
        assert (len(kept), hashlib.sha256(kept).hexdigest()) == (output["bytes"], output["sha256"])
    assert reader(small, job["job_id"]).read().sha256 == output["sha256"]
    # The neighbour and its worker have noticed nothing.
    (worker,) = small.list_workers()
    assert (worker["state"], small.server_pid(small.workers[0])) == ("ready", server)
    (task_directory(small.job(neighbour["job_id"])) / "work" / "go").touch()
    ended = small.until(neighbour["job_id"], "failed")
    assert (ended["exit_code"], ended["output"]["bytes"]) == (5, 6), ended


@pytest.mark.parametrize("left", [0, 4096, 65536])
def test_a_running_job_on_a_full_disk_ends_as_it_would_and_its_output_is_told_to_the_end(
    small: Cluster, left: int
) -> None:
    script = "echo before; while [ -e hold ]; do sleep 0.05; done; seq 20000; exit 7"
    job = small.post({"command": ["sh", "-c", script], "files": {"hold": ""}})
    eventually(lambda: small.output(job["job_id"]) == b"before\n", what="its first line")
    with filled(home_of(small), left):
        (task_directory(small.job(job["job_id"])) / "work" / "hold").unlink()
        ended = small.until(job["job_id"], "failed")
        assert (ended["reason"], ended["exit_code"]) == ("exited", 7), ended
        whole = b"before\n" + b"".join(b"%d\n" % n for n in range(1, 20001))
        output = ended["output"]
        assert output["bytes"] + output["dropped_bytes"] == len(whole)
        followed = reader(small, job["job_id"], timeout_seconds=10).read(within=20)
        assert followed.offset == output["bytes"] and followed.sha256 == output["sha256"]
        assert whole.startswith(small.output(job["job_id"]))


def test_a_job_whose_own_files_fill_the_disk_gets_its_own_error_and_ends_by_it(small: Cluster) -> None:
    script = "import os\ntry:\n  open('big', 'wb', 0).write(bytes(1 << 25))\nfinally:\n  os._exit(9)"
    script = script.replace("finally:\n  os._exit(9)", "except OSError as e:\n  os._exit(e.errno)")
    script += "\nsize = os.stat('big').st_size\ntry:\n  open('more', 'wb', 0).write(bytes(65536))"
    script += "\nexcept OSError as e:\n  os._exit(e.errno)\nos._exit(99)"
    job = small.run({"command": "python3", "path": "fill.py", "files": {"fill.py": script}})
    assert (job["state"], job["reason"], job["exit_code"]) == ("failed", "exited", 28), job  # ENOSPC
    assert small.list_workers()[0]["state"] == "ready"


def test_a_start_waits_for_room_and_says_so_and_the_worker_takes_jobs_again(small: Cluster) -> None:
    server = small.server_pid(small.workers[0])
    with filled(home_of(small)):
        waiting = small.post({"command": "echo room"})
        eventually(
            lambda: "ENOSPC" in (small.job(waiting["job_id"])["queue_reason"] or ""), what="the queue reason"
        )
        assert small.list_workers()[0]["state"] == "ready"
        stopped = small.post({"command": "echo never"})
        assert small.stop_job(stopped["job_id"])["state"] == "stopped"
    ended = small.job(waiting["job_id"], wait=30)
    assert ended["state"] == "succeeded", ended
    assert small.output(waiting["job_id"]) == b"room\n"
    assert small.server_pid(small.workers[0]) == server


def test_a_worker_stops_in_order_and_starts_on_a_full_disk_and_nothing_of_it_is_lost(small: Cluster) -> None:
    job = small.post(NEIGHBOUR)
    eventually(lambda: small.output(job["job_id"]) == b"begun\n", what="its first line")
    with filled(home_of(small)):
        assert small.workers[0].stop() == 0, small.logs()
        ended = small.job(job["job_id"])
        assert (ended["state"], ended["reason"]) == ("stopped", "worker_shutdown"), ended
        assert ended["output"]["bytes"] == 6
        small.workers[0].start()
        small.wait_ready(1)
        assert small.output(job["job_id"]) == b"begun\n"


@contextmanager
def cluster_with_small_store(directory: Path) -> Iterator[tuple[Cluster, Path]]:
    """A cluster whose store alone lies on a small disk."""
    disk = directory / "store"
    disk.mkdir()
    settings = {"store": {"path": str(disk / "controller.sqlite3")}}
    with (
        small_disk(disk, DISK_BYTES),
        running_cluster(directory, workers=1, controller_settings=settings) as cluster,
    ):
        yield cluster, disk


def ready(cluster: Cluster) -> bool:
    with cluster.client() as client:
        answer = client.get("/readyz")
        assert answer.status_code in (200, 503)
        return answer.status_code == 200


def post_until_refused(cluster: Cluster, key: str) -> tuple[list[str], httpx2.Response]:
    """The jobs that were acknowledged, each with 64 KiB to be stored, and the answer that was none."""
    acknowledged: list[str] = []
    with cluster.client() as client:
        for number in range(1000):
            body = {"command": "true", "env": {"FILLER": "x" * 65536}, "name": "filler"}
            answer = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": f"{key}-{number}"})
            if answer.status_code != 201:
                return acknowledged, answer
            acknowledged.append(answer.json()["job_id"])
    raise AssertionError("the disk was never full")


def test_a_store_on_a_full_disk_acknowledges_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with cluster_with_small_store(tmp_path) as (cluster, disk):
        running = cluster.post(NEIGHBOUR)["job_id"]
        eventually(lambda: cluster.output(running) == b"begun\n", what="its first line")
        cluster.until(running, "running")  # committed, which its output does not wait for
        assert ready(cluster)
        with filled(disk):
            acknowledged, refused = post_until_refused(cluster, "first")
            assert refused.status_code == 503, refused.text
            assert refused.headers["content-type"] == "application/problem+json"
            assert "full" in refused.json()["detail"] and int(refused.headers["retry-after"]) > 0
            assert not ready(cluster)
            with cluster.client() as client:
                assert client.get("/healthz").status_code == 200
            # What was known before is told on, and the worker is not given up.
            assert cluster.job(running)["state"] == "running"
            assert cluster.output(running) == b"begun\n"
            assert cluster.list_workers()[0]["state"] == "ready"
            # An end that cannot be committed is not shown, and stays with its worker.
            (task_directory(cluster.job(running)) / "work" / "go").touch()
            claims = tmp_path / "worker-1" / "data" / "claims"
            index = task_directory(cluster.job(running)) / "index"
            eventually(lambda: b'"exit_code":5' in index.read_bytes(), what="its end on the worker")
            assert cluster.job(running)["state"] == "running"
            assert (claims / f"{running}.0.1").is_symlink()
        eventually(lambda: ready(cluster), what="a store that commits")
        assert cluster.until(running, "failed")["exit_code"] == 5
        eventually(lambda: not (claims / f"{running}.0.1").is_symlink(), what="its acknowledgement")
        # The very call that was refused, again.
        body = {"command": "true", "env": {"FILLER": "x" * 65536}, "name": "filler"}
        key = f"first-{len(acknowledged)}"
        with cluster.client() as client:
            answer = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
            assert answer.status_code == 201, answer.text
            acknowledged.append(answer.json()["job_id"])
        for job_id in acknowledged:
            assert cluster.until(job_id, "succeeded")
        cluster.controller.signal(signal.SIGKILL)
        cluster.controller.wait()
        cluster.controller.start()
        cluster.wait_ready(1)
        with cluster.client() as client:
            listed = client.get("/v1/jobs", params={"name": "filler", "limit": 1000}).json()["jobs"]
        assert {job["job_id"] for job in listed} == set(acknowledged)


def test_a_controller_that_finds_its_disk_full_says_so_and_starts_when_there_is_room(tmp_path: Path) -> None:
    with cluster_with_small_store(tmp_path) as (cluster, disk):
        job = cluster.run({"command": "true"})
        assert cluster.controller.stop() == 0
        with filled(disk):
            cluster.controller.start()
            assert cluster.controller.wait() == 2
            said = cluster.controller.log.read_text().splitlines()[-1]
            assert "controller.sqlite3" in said and "no room on its disk" in said
        cluster.controller.start()
        cluster.wait_ready(1)
        assert cluster.job(job["job_id"])["state"] == "succeeded"
