"""Between the proto and the shapes of the unix sockets: protobuf ends at this door."""

from __future__ import annotations

import base64
import shlex
from typing import TYPE_CHECKING, Any

from jobcluster.v1 import common_pb2 as common
from jobcluster.v1 import worker_pb2 as pb
from jobcluster_common.errors import Fault, Invalid

from jobcluster_worker.launcher.shapes import JOB_ID, TERMINAL, Spec, Task

TaskStatus = common.TaskStatus
__all__ = ["TERMINAL", "TaskStatus"]

if TYPE_CHECKING:
    from jobcluster_worker.launcher.shapes import Limits, Usage

ARGUMENTS_MAX = 128 * 1024
_USAGE = tuple(common.Usage.DESCRIPTOR.fields_by_name)


def task_to_proto(task: Task) -> common.TaskStatus:
    """A task as its controller is told of it."""
    status = common.TaskStatus(
        job_id=task["job_id"],
        task_rank=task["task_rank"],
        attempt=task["attempt"],
        state=task["state"],
        reason=task["reason"],
        error_text=task["error_text"],
        exit_code=task["exit_code"],
        signal=task["signal"],
        started_at_us=task["started_at_us"],
        finished_at_us=task["finished_at_us"],
        usage=usage_to_proto(task["usage"]),
        limits_effective=limits_to_proto(task["limits_effective"]),
    )
    output = task["output"]
    status.output.path, status.output.log_path = output["path"], output["log_path"]
    status.output.dropped_bytes, status.output.available = output["dropped_bytes"], output["available"]
    for target, totals in (
        (status.output.merged, output["merged"]),
        (status.output.stdout, output["stdout"]),
        (status.output.stderr, output["stderr"]),
    ):
        target.bytes, target.sha256 = totals["bytes"], totals["sha256"]
    for resource, enforcement in task["enforced"].items():
        status.enforced[resource].ok, status.enforced[resource].why = enforcement["ok"], enforcement["why"]
    return status


def usage_to_proto(usage: Usage) -> common.Usage:
    known: dict[str, Any] = {name: usage.get(name) for name in _USAGE}  # an older supervisor tells fewer
    return common.Usage(**{name: value for name, value in known.items() if value is not None})


def limits_to_proto(limits: Limits) -> common.Limits:
    return common.Limits(
        cpu=limits.get("cpu") or 0.0,
        memory_bytes=limits.get("memory_bytes") or 0,
        pids=limits.get("pids") or 0,
        io=common.IoLimits(**limits.get("io") or {}),
        oom=limits.get("oom") or "",
    )


def spec_from_proto(request: pb.StartJobRequest, job_id: str, worker_id: str) -> Spec:
    """A start for a supervisor. Without a job id in the request it is the attempt that stands for a minted one.

    :raises Invalid: if no process could come of it; every fault is named
    """
    faults: list[Fault] = []
    words = _words(request, faults)
    _check(request, job_id, words, faults)
    if faults:
        raise Invalid(faults)
    spec: Spec = {
        "job_id": job_id,
        "task_rank": request.task_rank,
        "attempt": max(1, request.attempt) if request.job_id else 0,
        "task_count": max(1, request.task_count),
        "worker_id": worker_id,
        "command_words": words,
        "path": request.path,
        "args": list(request.args),
        "files": {name: base64.b64encode(data).decode() for name, data in request.files.items()},
        "env": dict(request.env),
        "cwd": request.cwd,
        "stdin": base64.b64encode(request.stdin).decode() if request.HasField("stdin") else None,
        "timeout_seconds": request.timeout_seconds,
        "limits": limits_from_proto(request.limits),
        "network": request.network or "host",
        "output": {
            "max_bytes": request.output.max_bytes,
            "on_limit": request.output.on_limit or "truncate",
            "separate": request.output.separate if request.output.HasField("separate") else True,
        },
        "peers": list(request.peers),
        "array_index": request.array_index if request.HasField("array_index") else None,
    }
    return spec


def _words(request: pb.StartJobRequest, faults: list[Fault]) -> list[str]:
    if request.command_words:
        return list(request.command_words)
    try:
        return shlex.split(request.command)
    except ValueError as error:
        faults.append(Fault("/command", f"{error}: {request.command!r}"))
        return []


def _check(request: pb.StartJobRequest, job_id: str, words: list[str], faults: list[Fault]) -> None:
    if not JOB_ID.fullmatch(job_id):
        faults.append(Fault("/job_id", "letters, digits, '.', '_' and '-', 128 at most"))
    if not faults and not words and not request.path:
        faults.append(Fault("/command", "command or path is needed"))
    for name, path in (("/path", request.path), ("/cwd", request.cwd)):
        if ".." in path.split("/"):
            faults.append(Fault(name, f"leads out of its directory: {path!r}"))
    if any(not name or "=" in name for name in request.env):
        faults.append(Fault("/env", "a name is empty, or has ="))
    if request.network not in ("", "host", "none"):
        faults.append(Fault("/network", f"host or none, not {request.network!r}"))
    if request.output.on_limit not in ("", "truncate", "stop"):
        faults.append(Fault("/output/on_limit", f"truncate or stop, not {request.output.on_limit!r}"))
    if request.limits.oom not in ("", "group", "process"):
        faults.append(Fault("/limits/oom", f"group or process, not {request.limits.oom!r}"))
    if not 0 <= request.limits.cpu < float("inf"):
        faults.append(Fault("/limits/cpu", "a number of cores"))
    if not 0 <= request.timeout_seconds < float("inf"):
        faults.append(Fault("/timeout_seconds", "a number of seconds"))
    texts = {"/command": words, "/path": [request.path], "/args": request.args, "/cwd": [request.cwd]}
    texts["/env"] = [*request.env.keys(), *request.env.values()]
    faults += [Fault(name, "holds a NUL") for name, values in texts.items() if any("\0" in v for v in values)]
    size = sum(len(v.encode()) + 1 for v in (*words, *request.args, *texts["/env"]))
    if size > ARGUMENTS_MAX:
        faults.append(Fault("/args", f"{size} bytes with the environment; {ARGUMENTS_MAX} at most"))


def limits_from_proto(limits: common.Limits) -> Limits:
    given: Limits = {"oom": limits.oom or "group"}
    if limits.cpu:
        given["cpu"] = limits.cpu
    if limits.memory_bytes:
        given["memory_bytes"] = limits.memory_bytes
    if limits.pids:
        given["pids"] = limits.pids
    io = limits.io
    named = {
        "read_bps": io.read_bps,
        "write_bps": io.write_bps,
        "read_iops": io.read_iops,
        "write_iops": io.write_iops,
    }
    if any(named.values()):
        given["io"] = {k: v for k, v in named.items() if v}  # type: ignore[typeddict-item]
    return given
