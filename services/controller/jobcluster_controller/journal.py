"""What the log says of jobs: accepted, asked to stop, ended. Never what they are: no word of a command, no value."""

from __future__ import annotations

import structlog

from .domain.job import Job

log = structlog.get_logger()


def committed(before: Job | None, job: Job) -> None:
    """A listener of the ledger: ``before`` is the job as it was shown until this commit."""
    if before is None:
        log.info("job_accepted", job_id=job.job_id, state=job.state, tasks=len(job.tasks))
    elif job.stop_requested is not None and job.stop_requested != before.stop_requested:
        log.info("job_stop_requested", job_id=job.job_id, signal=job.stop_requested[0])
    task = job.deciding_task
    if task is not None:
        log.info(
            "job_ended",
            job_id=job.job_id,
            worker_id=task.worker_id,
            attempt=task.attempt,
            state=job.state,
            reason=task.reason,
            exit_code=task.exit_code,
            signal=task.signal,
        )
