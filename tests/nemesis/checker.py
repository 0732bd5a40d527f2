"""Judges a history of jobs against what their witness lines say. Pure: no cluster, no clock."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.nemesis.witness import Line, Plan, stderr, stdout

ORDER = {
    "queued": 0,
    "starting": 1,
    "running": 2,
    "stopping": 3,
    "succeeded": 4,
    "failed": 4,
    "stopped": 4,
    "lost": 4,
}


@dataclass
class Record:
    """One acknowledged job: what its callers saw of it."""

    plan: Plan
    job_id: str
    states: list[str] = field(default_factory=list)
    """Each state that was seen, in order, repeats left out."""
    job: dict[str, Any] | None = None
    """As the API tells it at its end; None = it did not end, or is not known."""
    followed: bytes = b""
    """stdout as one reader got it over all cuts and resumptions."""
    follow_ended: bool = False
    """That reader was told the end."""
    stdout: bytes = b""
    stderr: bytes = b""
    merged: bytes = b""

    def saw(self, state: str) -> None:
        if not self.states or self.states[-1] != state:
            self.states.append(state)


def check(records: Iterable[Record], lines: Iterable[Line]) -> list[str]:
    """Every violation, in words; an empty list is a clean run."""
    witnessed: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        witnessed[line.job_id].append(line)
    found: list[str] = []
    for record in records:
        own = witnessed.pop(record.job_id, [])
        faults = [*_order(record), *_starts(own)]
        if record.job is None:
            faults.append("acknowledged, and no end of it is known")
        else:
            faults += [*_end(record, record.job, own), *_streams(record, record.job)]
        found += [f"job {record.job_id} ({record.plan}): {fault}" for fault in faults]
    # A POST whose answer was cut was sent again with its key: a job nobody was told of cannot have run.
    found += [f"job {job_id} ran and was never acknowledged" for job_id in witnessed]
    return found


def _order(record: Record) -> Iterable[str]:
    for earlier, later in zip(record.states, record.states[1:], strict=False):
        if ORDER[later] <= ORDER[earlier]:
            yield f"state {later} after {earlier}: {record.states}"


def _starts(own: list[Line]) -> Iterable[str]:
    starts = Counter(line.attempt for line in own if line.what == "start")
    for attempt, count in starts.items():
        if count > 1:
            yield f"attempt {attempt} was started {count} times"


def _end(record: Record, job: dict[str, Any], own: list[Line]) -> Iterable[str]:
    """What is told must be what was seen; a job of this load has one attempt, and no worker is ever lost."""
    plan, ends = record.plan, [line for line in own if line.what == "end"]
    started = any(line.what == "start" for line in own)
    told = (job["state"], job["reason"], job["exit_code"], job["signal"])
    if job["reason"] == "exited":
        if not ends:
            yield f"told {told}, and no process told of its end"
        elif str(job["exit_code"]) != ends[0].detail:
            yield f"told {told}, and its process ended with {ends[0].detail}"
        if (job["state"] == "succeeded") != (job["exit_code"] == 0):
            yield f"state and exit code do not agree: {told}"
    elif job["reason"] == "signaled":
        if plan.kind != "signal" or job["signal"] != "KILL" or not ends:
            yield f"told {told}, which was not planned"
    elif job["reason"] in ("stopped", "timed_out"):
        if {"stopped": "stop", "timed_out": "timeout"}[job["reason"]] != plan.kind:
            yield f"told {told}, which was not planned"
    else:
        yield f"told {told}: {job['error_text']}"
    if not started and plan.kind != "stop":
        yield f"told {told}, and no process told of its start"


def _streams(record: Record, job: dict[str, Any]) -> Iterable[str]:
    whole = job["reason"] in ("exited", "signaled")
    for name, got, want in (
        ("stdout", record.stdout, stdout(record.plan.count)),
        ("stderr", record.stderr, stderr(record.plan.count)),
    ):
        if whole and got != want:
            yield f"{name} has {len(got)} bytes of {len(want)}, or others"
        elif not want.startswith(got):
            yield f"{name} has a gap or a repeat"
    if not record.follow_ended:
        yield "the reader was never told the end"
    if record.followed != record.stdout:
        yield f"the reader got {len(record.followed)} bytes, the output has {len(record.stdout)}, or others"
    output = job["output"]
    if output["bytes"] != len(record.merged) or len(record.merged) != len(record.stdout) + len(record.stderr):
        yield f"{output['bytes']} bytes are told, {len(record.merged)} are there"
    if output["sha256"] != hashlib.sha256(record.merged).hexdigest():
        yield "the hash that is told is not that of the output"
