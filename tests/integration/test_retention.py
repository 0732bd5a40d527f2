"""What is kept of ended jobs: for a time, up to a total; then it is gone, and that is said."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.integration.cluster import eventually, running_cluster
from tests.integration.reader import EVENTS
from tests.integration.truth import task_directory


def test_an_output_that_is_too_old_is_410_with_the_facts_and_the_job_is_still_told(tmp_path: Path) -> None:
    with running_cluster(
        tmp_path, workers=1, worker_settings={"retention": {"output_seconds": 1}}
    ) as cluster:
        job = cluster.run({"command": "echo short-lived"})
        live = cluster.post({"command": ["sh", "-c", "echo alive; sleep 600"]})
        directory = task_directory(job)
        eventually(lambda: not directory.exists(), what="the output gone")
        digest = hashlib.sha256(b"short-lived\n").hexdigest()
        path = f"/v1/jobs/{job['job_id']}/output"
        with cluster.client() as client:
            for accept in ("*/*", EVENTS):
                for follow in ("true", "false"):
                    answer = client.get(path, params={"follow": follow}, headers={"Accept": accept})
                    assert answer.status_code == 410, answer.text
                    assert "12 bytes" in answer.json()["detail"] and digest in answer.json()["detail"]
        ended = cluster.job(job["job_id"])
        assert (ended["state"], ended["exit_code"]) == ("succeeded", 0)
        output = ended["output"]
        assert (output["bytes"], output["sha256"], output["available"]) == (12, digest, False)
        assert cluster.output(live["job_id"]) == b"alive\n"
        cluster.stop_job(live["job_id"])


def test_of_too_much_output_the_oldest_goes_first(tmp_path: Path) -> None:
    # Looks come every 2 s: none of these is too old when the first one does.
    retention = {"output_bytes": "3MiB", "output_seconds": 8}
    with running_cluster(tmp_path, workers=1, worker_settings={"retention": retention}) as cluster:
        jobs = [cluster.run({"command": "head -c 1000000 /dev/zero"}) for _ in range(5)]
        eventually(lambda: not task_directory(jobs[0]).exists(), what="the oldest gone")
        assert task_directory(jobs[-1]).exists()
        assert len(cluster.output(jobs[-1]["job_id"])) == 1_000_000
