"""Whatever a job has made of itself, its end leaves no process, cgroup, mount, descriptor or directory of it."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.integration.cluster import descendants, eventually
from tests.limits.containers import ROOT
from tests.limits.placed import PlacedCluster, leaf_of
from tests.limits.trees import BUSY, LEFT_BEHIND, NASTY

LIMITS = {"pids": 64, "memory": "64MiB"}
SLOWLY = {**LIMITS, "cpu": 0.1}


def pids_of(uid: int) -> list[str]:
    """Every process of that user, zombies too."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if f"\nUid:\t{uid}\t" in text:
            found.append(text)
    return found


def uid_told(cluster: PlacedCluster, job_id: str) -> int:
    """What the tree says when it is all there; 0 before."""
    said = cluster.output(job_id, stream="stdout").split()
    return int(said[0]) if said else 0


def test_stop_leaves_no_process_and_no_cgroup_of_the_nastiest_trees(cluster: PlacedCluster) -> None:
    jobs = {
        name: cluster.post({**spec, "limits": SLOWLY if name in BUSY else LIMITS})["job_id"]
        for name, spec in NASTY.items()
    }
    uids = {
        name: eventually(partial(uid_told, cluster, job), what=f"{name} to be ready")
        for name, job in jobs.items()
    }
    leaves = {name: leaf_of(job) for name, job in jobs.items()}
    assert len(set(uids.values())) == len(NASTY) >= 20
    assert {name for name in jobs if not pids_of(uids[name])} == set()
    for job in jobs.values():
        cluster.stop_job(job, wait=None, grace_seconds=1)
    for name, job in jobs.items():
        ended = cluster.job(job, wait=30)
        assert (ended["state"], ended["reason"]) == ("stopped", "stopped"), (name, ended)
        assert not leaves[name].exists(), name
        assert pids_of(uids[name]) == [], name


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_a_leaders_end_is_the_jobs_and_what_it_left_goes_too(cluster: PlacedCluster, name: str) -> None:
    script = f"id -u; {LEFT_BEHIND[name]}"
    job = cluster.run({"command": "sh", "args": ["-c", script], "limits": LIMITS})
    assert (job["state"], job["reason"], job["exit_code"]) == ("failed", "exited", 3), job
    assert pids_of(uid_told(cluster, job["job_id"])) == []
    assert list(ROOT.rglob(f"jobs/{job['job_id']}*/")) == []


def things_of(cluster: PlacedCluster) -> dict[str, object]:
    """What jobs could leave in the worker's processes and on its disk, but for what retention keeps of each."""
    worker = cluster.workers[0]
    below = descendants(worker.pid)
    own = [worker.pid, *(pid for pid, line in below.items() if "launcher" in line and "server" not in line)]
    data = cluster.directory / worker.name / "data"
    return {
        "groups": sorted(str(path) for path in ROOT.rglob("jobs/*/")),
        "mounts": [len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()) for pid in own],
        "descriptors": [len(os.listdir(f"/proc/{pid}/fd")) for pid in own],
        "threads": [len(os.listdir(f"/proc/{pid}/task")) for pid in own],
        "processes": sorted(below.values()),
        "run directories": sorted(str(path) for path in Path("/run").glob("jobcluster*/*")),
        "claims": len(list((data / "claims").iterdir())),
        "in the data directory": sorted(path.name for path in data.iterdir()),
    }


KINDS = ({"command": "true"}, {"command": "sh -c 'exit 3'"}, {"command": "/none"}, {"command": "sleep 600"})


def test_many_jobs_leave_nothing_but_their_outputs(
    cluster: PlacedCluster, limits_n: int, tell: Callable[..., None]
) -> None:
    cluster.run({"command": "true", "limits": LIMITS})
    before = eventually(lambda: settled(cluster), what="a quiet worker")
    outputs = cluster.directory / cluster.workers[0].name / "data" / "jobs"
    kept = len(list(outputs.iterdir()))
    jobs: list[str] = []
    for _ in range(3 * limits_n // 20):
        # No more at once than one supervisor takes: another would stay.
        batch = [cluster.post({**KINDS[n % len(KINDS)], "limits": LIMITS})["job_id"] for n in range(20)]
        for job in batch[3 :: len(KINDS)]:
            cluster.stop_job(job, wait=None)
        jobs += [job for job in batch if cluster.job(job, wait=60)["done"]]
    ends = [cluster.job(job)["reason"] for job in jobs]
    counted = {reason: ends.count(reason) for reason in sorted(set(ends))}
    tell(**counted)
    assert set(counted) == {"exited", "start_failed", "stopped"}
    eventually(lambda: things_of(cluster) == before, what=f"the worker as before: {before}")
    assert len(list(outputs.iterdir())) - kept <= len(jobs)


def settled(cluster: PlacedCluster) -> dict[str, object]:
    found = things_of(cluster)
    return found if not found["groups"] and things_of(cluster) == found else {}
