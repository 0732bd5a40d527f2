"""More and fewer workers while jobs run."""

from __future__ import annotations

from tests.e2e import counting
from tests.e2e.api import Api, wait_until
from tests.e2e.stack import Stack, inspect


def test_more_workers_disturb_no_job_and_take_new_ones(stack: Stack, api: Api, three: set[str]) -> None:
    jobs = [counting.start(api, 60) for _ in range(6)]
    stack.scale(5)
    five = api.wait_ready(5)
    assert three < five
    new = [counting.start(api, 5, worker_id=w) for w in five - three]
    for job in jobs:
        counting.check_whole(api, job["job_id"], 60)
    for job in new:
        counting.check_whole(api, job["job_id"], 5)


def test_fewer_workers_end_their_jobs_and_leave_cleanly(stack: Stack, api: Api, three: set[str]) -> None:
    containers = {w: stack.container_of(w, api) for w in three}
    jobs = {w: counting.start(api, 600, worker_id=w)["job_id"] for w in three}
    stack.scale(1)
    (stayed,) = api.wait_ready(1)
    assert [c for c in containers.values() if c in stack.containers("worker")] == [containers[stayed]]
    for worker_id in three - {stayed}:
        job = api.ended(jobs[worker_id])
        assert (job["state"], job["reason"]) == ("stopped", "worker_shutdown"), job
    gone = {w["worker_id"] for w in api.workers(state="gone")}
    assert three - {stayed} <= gone
    assert api.job(jobs[stayed])["state"] == "running"
    api.stop(jobs[stayed], grace_seconds=1)
    assert api.ended(jobs[stayed])["reason"] == "stopped"
    counting.check_begun(api, jobs[stayed])


def test_stopped_workers_exit_with_0_and_none_stays_ready(stack: Stack, api: Api, three: set[str]) -> None:
    jobs = [counting.start(api, 600, worker_id=w)["job_id"] for w in three]
    containers = stack.containers("worker", "running")
    stack.run("stop", "worker")
    assert [inspect(c)["State"]["ExitCode"] for c in containers] == [0, 0, 0]
    wait_until(api.ready, lambda ids: not ids, 5, "no ready worker")
    for job_id in jobs:
        job = api.ended(job_id, 5)
        assert (job["state"], job["reason"]) == ("stopped", "worker_shutdown"), job
    queued = api.start(command="echo late")
    assert (queued["state"], bool(queued["queue_reason"])) == ("queued", True)
    stack.scale(3)
    assert api.ended(queued["job_id"])["state"] == "succeeded"
    assert api.wait_ready(3) == three
