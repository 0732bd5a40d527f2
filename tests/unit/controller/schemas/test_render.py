"""The documents that the API shows have exactly the form that their models say."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from jobcluster_controller.domain.job import (
    Enforcement,
    IoLimits,
    Job,
    Limits,
    Output,
    StreamTotals,
    Task,
    Usage,
)
from jobcluster_controller.domain.states import Reason, State, WorkerState
from jobcluster_controller.domain.worker import Capacity, Worker, WorkerLimits
from jobcluster_controller.schemas.documents import JobDocument, WorkerDocument
from jobcluster_controller.schemas.parse import parse_job_spec
from jobcluster_controller.schemas.render import end_document, job_document, worker_document

NOW = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
ENDED = Task(
    state=State.FAILED,
    worker_id="w1",
    reason=Reason.SIGNALED,
    signal="KILL",
    error_text="",
    started_at=NOW,
    finished_at=NOW,
    usage=Usage(cpu_seconds=0.5, oom_kills=0),
    output=Output(
        "/data/o", "/log", StreamTotals(3, "ab"), StreamTotals(2, "cd"), StreamTotals(1, "ef"), 4, True
    ),
    limits_effective=Limits(0.5, 1 << 20, 32, IoLimits(1, 2, 3, 4)),
    enforced={"io": Enforcement(False, "no device"), "cpu": Enforcement(True)},
)


def shown(job: Job) -> dict[str, Any]:
    document = job_document(job)
    JobDocument.model_validate_json(json.dumps(document))
    return document


def job(*tasks: Task) -> Job:
    return Job("j", parse_job_spec({"command": "x", "name": "n", "labels": {"a": "b"}}), NOW, tasks)


def test_an_ended_job() -> None:
    document = shown(job(ENDED))
    assert document["limits"]["enforced"] == {"cpu": {"ok": True}, "io": {"ok": False, "why": "no device"}}
    assert document["limits"]["effective"] == {
        "cpu": 0.5,
        "memory": 1 << 20,
        "pids": 32,
        "io": {"read_bps": 1, "write_bps": 2, "read_iops": 3, "write_iops": 4},
        "oom": "group",
    }
    assert document["output"] == {
        "path": "/data/o",
        "log_path": "/log",
        "bytes": 3,
        "sha256": "ab",
        "dropped_bytes": 4,
        "available": True,
    }
    assert (document["done"], document["error"], document["reason"]) == (True, True, "signaled")
    assert (document["exit_code"], document["signal"], document["error_text"]) == (None, "KILL", None)
    assert document["created_at"] == document["finished_at"] == "2026-01-02T03:04:05.000006Z"
    assert document["usage"] == document["tasks"][0]["usage"]
    assert document["usage"]["cpu_seconds"] == 0.5 and document["usage"]["io_read_bytes"] is None


def test_a_job_that_waits() -> None:
    document = shown(job(Task()))
    assert (document["state"], document["done"], document["error"]) == ("queued", False, False)
    assert document["limits"]["effective"] is None and document["output"]["sha256"] is None


def test_a_job_of_several_tasks_has_no_worker_and_no_output_of_its_own() -> None:
    document = shown(job(ENDED, ENDED.evolve(rank=1, worker_id="w2")))
    assert document["worker_id"] is None and document["output"] is None
    assert [task["worker_id"] for task in document["tasks"]] == ["w1", "w2"]
    assert document["usage"]["cpu_seconds"] == 1.0 and document["usage"]["pids_peak"] is None


def test_the_end_tells_what_the_asked_stream_came_to() -> None:
    assert end_document(job(ENDED), "stderr") == {
        "state": "failed",
        "reason": "signaled",
        "exit_code": None,
        "tasks": [{"rank": 0, "bytes": 1, "sha256": "ef"}],
    }


def test_a_worker() -> None:
    worker = Worker("w1", "h:1", WorkerState.READY, "i", 1, NOW, NOW, "0.1", {"a": "b"}, Capacity(2, 3, 4))
    worker = worker.evolve(limits=WorkerLimits(max=Limits(0.5, 1 << 20, 8, IoLimits(write_bps=7))))
    document = worker_document(worker, 5)
    WorkerDocument.model_validate_json(json.dumps(document))
    assert document["capacity"] == {"cpu": 2, "memory": 3, "tasks": 4} and document["running"] == 5
    nothing: dict[str, Any] = dict.fromkeys(("read_bps", "write_bps", "read_iops", "write_iops"))
    assert document["limits"]["max"] == {
        "cpu": 0.5,
        "memory": 1 << 20,
        "pids": 8,
        "io": {**nothing, "write_bps": 7},
    }
    assert (
        document["limits"]["default"]
        == document["limits"]["worker"]
        == {
            **dict.fromkeys(("cpu", "memory", "pids")),
            "io": nothing,
        }
    )
