"""Jobs that count: any gap, repeat or lost tail of their output shows."""

from __future__ import annotations

from tests.e2e.api import JSON, Api


def start(api: Api, count: int, pause: float = 0.1, worker_id: str | None = None) -> JSON:
    """A running job that writes the numbers 1 to ``count``, one line each, with a pause after each."""
    script = f"i=0; while [ $i -lt {count} ]; do i=$((i+1)); echo $i; sleep {pause}; done; exit 5"
    job = api.start(worker_id, command=["sh", "-c", script])
    return api.running(job["job_id"])


def lines(count: int) -> bytes:
    return b"".join(b"%d\n" % n for n in range(1, count + 1))


def check_whole(api: Api, job_id: str, count: int, seconds: float = 60) -> None:
    """The job went to its own end, and its output is all there."""
    job = api.ended(job_id, seconds)
    assert (job["state"], job["reason"], job["exit_code"], job["attempt"]) == ("failed", "exited", 5, 1), {
        **job,
        "spec": "…",
    }
    assert api.output(job_id) == lines(count)


def check_begun(api: Api, job_id: str) -> None:
    """What there is of the output is its beginning, without a gap."""
    output = api.output(job_id)
    assert lines(1000).startswith(output), output[:200]
