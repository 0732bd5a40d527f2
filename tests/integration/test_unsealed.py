"""An output whose end could be written nowhere: the end is told, and nobody takes the output for a whole one."""

from __future__ import annotations

import hashlib
import resource
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster, descendants, eventually, running_cluster
from tests.integration.truth import open_gate, reader, task_directory

KEPT, LOST = b"kept\n", b"lost\n"
JOB = {"command": ["sh", "-c", "echo kept; while [ ! -e go ]; do sleep 0.05; done; echo lost; exit 3"]}


def supervisors(cluster: Cluster) -> list[int]:
    (worker,) = cluster.workers
    return [pid for pid, line in descendants(worker.pid).items() if "--bootstrap-fd" in line]


def allow_files(cluster: Cluster, size: int) -> None:
    """From now on the supervisors can make no file longer than that (prlimit(2)): to them the disk is full."""
    for pid in supervisors(cluster):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def complete(cluster: Cluster, job_id: str) -> str:
    with cluster.client() as client:
        answer = client.get(f"/v1/jobs/{job_id}/output")
        assert (answer.status_code, answer.content) == (200, KEPT)
        return answer.headers["jobcluster-output-complete"]


@pytest.mark.timeout(120)
def test_an_output_without_its_end_never_looks_complete_and_is_when_there_is_room(tmp_path: Path) -> None:
    with running_cluster(tmp_path, workers=1) as cluster:
        job_id = cluster.post(JOB)["job_id"]
        eventually(lambda: cluster.output(job_id) == KEPT, what="its first line")
        allow_files(cluster, 0)
        open_gate(cluster, job_id)
        job = cluster.until(job_id, "failed")
        assert (job["reason"], job["exit_code"]) == ("exited", 3)
        digest = hashlib.sha256(KEPT).hexdigest()
        output = job["output"]
        assert (output["bytes"], output["dropped_bytes"], output["sha256"]) == (len(KEPT), len(LOST), digest)
        assert "EFBIG" in job["error_text"]
        assert complete(cluster, job_id) == "false"
        claim = tmp_path / "worker-1" / "data" / "claims" / f"{job_id}.0.1"
        assert claim.is_symlink()
        allow_files(cluster, resource.RLIM_INFINITY)
        eventually(lambda: not claim.is_symlink(), what="the release of its claim")
        assert complete(cluster, job_id) == "true"
        assert b'"exit_code":3' in (task_directory(job) / "index").read_bytes()
        followed = reader(cluster, job_id).read()
        assert (followed.offset, followed.sha256) == (len(KEPT), digest)
        assert cluster.job(job_id) == job
