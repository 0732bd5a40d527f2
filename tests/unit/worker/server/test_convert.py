from __future__ import annotations

import base64

import pytest
from jobcluster.v1 import common_pb2 as common
from jobcluster.v1 import worker_pb2 as pb
from jobcluster_common.errors import Invalid
from jobcluster_worker.launcher.shapes import new_task
from jobcluster_worker.server import convert


def test_the_seeds_request_becomes_a_start_of_the_minted_attempt() -> None:
    request = pb.StartJobRequest(command="bash -c 'echo $0'", path="worker/scripts/run.sh")
    spec = convert.spec_from_proto(request, "minted", "worker-1")
    assert (spec["job_id"], spec["task_rank"], spec["attempt"]) == ("minted", 0, 0)
    assert spec["command_words"] == ["bash", "-c", "echo $0"]
    assert spec["path"] == "worker/scripts/run.sh"
    assert (spec["stdin"], spec["task_count"], spec["network"]) == (None, 1, "host")
    assert spec["output"] == {"max_bytes": 0, "on_limit": "truncate", "separate": True}


def test_every_field_of_a_start_reaches_the_supervisor() -> None:
    request = pb.StartJobRequest(
        command="ignored",
        command_words=["a b", "c"],
        job_id="job",
        task_rank=2,
        attempt=3,
        task_count=4,
        args=["x"],
        files={"f": b"\xff"},
        env={"A": "1"},
        cwd="sub",
        stdin=b"\x00",
        timeout_seconds=1.5,
        limits=common.Limits(cpu=0.5, memory_bytes=7, pids=8, io=common.IoLimits(read_bps=9), oom="process"),
        network="none",
        output=common.OutputOptions(max_bytes=5, on_limit="stop", separate=False),
        peers=["h1", "h2"],
        array_index=0,
    )
    assert convert.spec_from_proto(request, "job", "worker-1") == {
        "job_id": "job",
        "task_rank": 2,
        "attempt": 3,
        "task_count": 4,
        "worker_id": "worker-1",
        "command_words": ["a b", "c"],
        "path": "",
        "args": ["x"],
        "files": {"f": base64.b64encode(b"\xff").decode()},
        "env": {"A": "1"},
        "cwd": "sub",
        "stdin": base64.b64encode(b"\x00").decode(),
        "timeout_seconds": 1.5,
        "limits": {"cpu": 0.5, "memory_bytes": 7, "pids": 8, "io": {"read_bps": 9}, "oom": "process"},
        "network": "none",
        "output": {"max_bytes": 5, "on_limit": "stop", "separate": False},
        "peers": ["h1", "h2"],
        "array_index": 0,
    }


@pytest.mark.parametrize(
    ("request_", "pointer"),
    [
        (pb.StartJobRequest(), "/command"),
        (pb.StartJobRequest(command="unbalanced 'quote"), "/command"),
        (pb.StartJobRequest(command="a\0b"), "/command"),
        (pb.StartJobRequest(command="sh", path="a/../../b"), "/path"),
        (pb.StartJobRequest(command="sh", args=["\0"]), "/args"),
        (pb.StartJobRequest(command="sh", args=["x" * 140_000]), "/args"),
        (pb.StartJobRequest(command="sh", env={"A": "\0"}), "/env"),
        (pb.StartJobRequest(command="sh", env={"A=B": "x"}), "/env"),
        (pb.StartJobRequest(command="sh", env={"": "x"}), "/env"),
        (pb.StartJobRequest(command="sh", cwd="a/.."), "/cwd"),
        (pb.StartJobRequest(command="sh", limits=common.Limits(cpu=-1)), "/limits/cpu"),
        (pb.StartJobRequest(command="sh", limits=common.Limits(cpu=float("nan"))), "/limits/cpu"),
        (pb.StartJobRequest(command="sh", limits=common.Limits(oom="all")), "/limits/oom"),
        (pb.StartJobRequest(command="sh", network="moon"), "/network"),
        (pb.StartJobRequest(command="sh", timeout_seconds=-1), "/timeout_seconds"),
        (pb.StartJobRequest(command="sh", timeout_seconds=float("nan")), "/timeout_seconds"),
        (pb.StartJobRequest(command="sh", output=common.OutputOptions(on_limit="x")), "/output/on_limit"),
        (pb.StartJobRequest(command="sh", job_id="../x"), "/job_id"),
    ],
)
def test_a_start_that_no_process_could_come_of_is_invalid(request_: pb.StartJobRequest, pointer: str) -> None:
    with pytest.raises(Invalid) as refused:
        convert.spec_from_proto(request_, request_.job_id or "minted", "worker-1")
    assert [fault.pointer for fault in refused.value.faults] == [pointer]


def test_a_task_is_told_with_absent_where_nothing_was_measured() -> None:
    task = new_task(("job", 1, 2), "failed")
    task["reason"], task["signal"], task["usage"]["cpu_seconds"] = "signaled", "KILL", 0.25
    task["limits_effective"] = {"cpu": 0.5, "io": {"read_bps": 3}}
    task["enforced"] = {"io": {"ok": False, "why": "no device"}}
    task["output"]["merged"] = {"bytes": 3, "sha256": "ab"}
    status = convert.task_to_proto(task)
    assert (status.job_id, status.task_rank, status.attempt) == ("job", 1, 2)
    assert not status.HasField("exit_code")
    assert (status.usage.cpu_seconds, status.usage.HasField("memory_peak_bytes")) == (0.25, False)
    assert (status.limits_effective.cpu, status.limits_effective.io.read_bps) == (0.5, 3)
    assert (status.enforced["io"].ok, status.enforced["io"].why) == (False, "no device")
    assert (status.output.merged.bytes, status.output.merged.sha256) == (3, "ab")
    task["exit_code"] = 0
    assert convert.task_to_proto(task).HasField("exit_code")
