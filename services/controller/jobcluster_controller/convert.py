"""Between the domain and what goes over the wire to and from workers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from jobcluster.v1 import common_pb2, worker_pb2

from .domain.changes import Report
from .domain.job import Enforcement, IoLimits, Job, Limits, Output, StreamTotals, Task, Usage
from .domain.query import OutputQuery
from .domain.states import Reason, State

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def start_request(job: Job, task: Task) -> worker_pb2.StartJobRequest:
    """The start of one attempt of one task."""
    spec = job.spec
    request = worker_pb2.StartJobRequest(
        job_id=job.job_id,
        task_rank=task.rank,
        attempt=task.attempt,
        task_count=len(job.tasks),
        epoch=task.epoch,
        path=spec.path or "",
        command_words=spec.command,
        args=spec.args,
        files=spec.files,
        env=spec.env,
        cwd=spec.cwd or "",
        stdin=spec.stdin,
        timeout_seconds=spec.timeout_seconds or 0.0,
        network=spec.network,
        output=common_pb2.OutputOptions(
            max_bytes=spec.output.max_bytes,
            on_limit=spec.output.on_limit,
            separate=spec.output.separate,
        ),
    )
    if spec.limits != Limits():
        request.limits.CopyFrom(limits_to_pb(spec.limits))
    if spec.limits_default != Limits():
        request.limits_default.CopyFrom(limits_to_pb(spec.limits_default))
    return request


def stream_request(job_id: str, task: Task, query: OutputQuery) -> worker_pb2.StreamJobRequest:
    return worker_pb2.StreamJobRequest(
        job_id=job_id,
        task_rank=task.rank,
        attempt=task.attempt,
        stream=query.stream,
        offset=query.offset,
        snapshot=not query.follow,
        tail_lines=query.tail_lines,
        limit_bytes=query.limit_bytes or 0,
    )


def limits_to_pb(limits: Limits) -> common_pb2.Limits:
    return common_pb2.Limits(
        cpu=limits.cpu or 0.0,
        memory_bytes=limits.memory or 0,
        pids=limits.pids or 0,
        io=common_pb2.IoLimits(
            read_bps=limits.io.read_bps or 0,
            write_bps=limits.io.write_bps or 0,
            read_iops=limits.io.read_iops or 0,
            write_iops=limits.io.write_iops or 0,
        ),
        oom=limits.oom,
    )


def report(status: common_pb2.TaskStatus) -> Report:
    """A worker's word on a task.

    :raises ValueError: if it is not one of our states or reasons, an end without a reason, or at no time there is.
    """
    state = State(status.state)
    if state is State.QUEUED or state is State.LOST:
        raise ValueError(f"a worker does not say {state}")
    reason = Reason(status.reason) if status.reason else None
    if state.done and reason is None:
        raise ValueError(f"{state} without a reason")
    task = Task(
        rank=status.task_rank,
        attempt=status.attempt,
        state=state,
        reason=reason if state.done else None,
        error_text=status.error_text or None,
        exit_code=status.exit_code if status.HasField("exit_code") else None,
        signal=status.signal or None,
        started_at=_moment(status.started_at_us),
        finished_at=_moment(status.finished_at_us),
        usage=_usage(status.usage),
        output=_output(status.output) if status.HasField("output") else Output(),
        limits_effective=limits_from_pb(status.limits_effective)
        if status.HasField("limits_effective")
        else None,
        enforced=enforced_from_pb(status.enforced),
    )
    return Report(status.job_id, task)


def enforced_from_pb(enforced: Mapping[str, common_pb2.Enforcement]) -> dict[str, Enforcement]:
    return {name: Enforcement(e.ok, e.why) for name, e in enforced.items()}


def _moment(us: int) -> datetime | None:
    try:
        return _EPOCH + timedelta(microseconds=us) if us else None
    except OverflowError:
        raise ValueError(f"{us} µs is no time") from None


def limits_from_pb(limits: common_pb2.Limits) -> Limits:
    io = limits.io
    return Limits(
        cpu=limits.cpu or None,
        memory=limits.memory_bytes or None,
        pids=limits.pids or None,
        io=IoLimits(io.read_bps or None, io.write_bps or None, io.read_iops or None, io.write_iops or None),
        oom=limits.oom or "group",
    )


def _usage(usage: common_pb2.Usage) -> Usage:
    # Only what is there: a field that is not, nobody could measure.
    return Usage(**{field.name: value for field, value in usage.ListFields()})


def _output(output: common_pb2.OutputInfo) -> Output:
    return Output(
        path=output.path or None,
        log_path=output.log_path or None,
        merged=_totals(output.merged),
        stdout=_totals(output.stdout),
        stderr=_totals(output.stderr),
        dropped_bytes=output.dropped_bytes,
        available=output.available,
    )


def _totals(totals: common_pb2.StreamTotals) -> StreamTotals:
    return StreamTotals(totals.bytes, totals.sha256 or None)
