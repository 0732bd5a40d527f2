"""What readers of a live output get, and what they cost: how soon a byte is there, and what 200 are to a job."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import time

from bench.client import Connection, Target
from bench.figures import Result, result
from bench.measures import MIB, Cluster, post
from bench.processes import rss_of

RSS_MIB_MAX = 32
PIECES = 40
PIECE_BYTES = 200 << 10
# At its own pace, so that its time is the same however busy the machine is, unless somebody makes it wait.
PACED = f"i=0; while [ $i -lt {PIECES} ]; do head -c {PIECE_BYTES} /dev/zero; sleep 0.1; i=$((i+1)); done"
SAMPLE_SECONDS = 0.1
END_SECONDS = 120.0


def latency(cluster: Cluster, count: int) -> Result:
    """From the write of a line to its arrival at a follower over HTTPS, median, against a reader of a bare pipe.

    Each line is the time at which it was written, by the clock that the readers read too.
    """
    writer = f"i=0; while [ $i -lt {count} ]; do date +%s%N; sleep 0.02; i=$((i+1)); done"

    async def followed() -> list[int]:
        async with Connection(cluster.target) as control, Connection(cluster.target) as reading:
            job = await post(control, {"command": ["sh", "-c", writer]})
            status, _ = await reading.send("GET", f"/v1/jobs/{job['job_id']}/output?follow=true")
            if status != 200:
                raise RuntimeError(f"output: {status}")
            late = []
            while chunk := await reading.next_chunk():
                late += _late(chunk)
            return late

    baseline = _through_a_pipe(writer)
    seen = asyncio.run(followed())
    if len(seen) != count:
        raise RuntimeError(f"{len(seen)} lines of {count} came")
    median, bare = statistics.median(seen), statistics.median(baseline)
    return result("write to byte at a reader, p50", median / 1e6, "ms", bare / 1e6)


def _through_a_pipe(writer: str) -> list[int]:
    late = []
    with subprocess.Popen(["sh", "-c", writer], stdout=subprocess.PIPE, bufsize=0) as process:
        if process.stdout is None:
            raise RuntimeError("no pipe")
        while chunk := process.stdout.read(65536):
            late += _late(chunk)
    return late


def _late(chunk: bytes) -> list[int]:
    """Nanoseconds since each of its lines was written."""
    now = time.time_ns()
    return [now - int(line) for line in chunk.split()]


def followers(cluster: Cluster, count: int) -> list[Result]:
    """A job with many followers, a tenth of them stalled, against the same job with none; and their memory."""
    alone = asyncio.run(_job_seconds(cluster.target))
    seconds, grown = asyncio.run(_followed(cluster, count))
    name = f"{count} followers, {count // 10} stalled"
    return [
        result(f"a job's time, {name}", seconds, "s", alone),
        result(f"controller, RSS grown, {name}", grown[0] / MIB, "MiB", at_most=RSS_MIB_MAX),
        result(f"worker, RSS grown, {name}", grown[1] / MIB, "MiB", at_most=RSS_MIB_MAX),
    ]


async def _job_seconds(target: Target) -> float:
    async with Connection(target) as control:
        began = time.perf_counter()
        job = await post(control, {"command": ["sh", "-c", PACED]}, "?wait=60")
        return _checked_seconds(job, began)


def _checked_seconds(job: dict[str, object], began: float) -> float:
    seconds = time.perf_counter() - began
    if job["state"] != "succeeded":
        raise RuntimeError(f"the followed job ended {job['state']}, {job['reason']}")
    return seconds


async def _followed(cluster: Cluster, count: int) -> tuple[float, list[int]]:
    """The job's seconds, and by how many bytes controller and worker were larger than before, at the most."""
    before, most = _rss(cluster), [0, 0]
    async with Connection(cluster.target) as control:
        began = time.perf_counter()
        job = await post(control, {"command": ["sh", "-c", PACED]})
        path = f"/v1/jobs/{job['job_id']}/output?follow=true"
        stalled = [asyncio.create_task(_stall(cluster.target, path)) for _ in range(count // 10)]
        reading = [asyncio.create_task(_read_all(cluster.target, path)) for _ in range(count - len(stalled))]
        ending = asyncio.create_task(_end(control, str(job["job_id"]), began))
        try:
            async with asyncio.timeout(END_SECONDS):
                while not all(task.done() for task in (ending, *reading)):
                    await asyncio.sleep(SAMPLE_SECONDS)
                    now = await asyncio.to_thread(_rss, cluster)
                    most = [max(pair) for pair in zip(most, now, strict=True)]
        finally:
            for task in (ending, *reading, *stalled):
                if not task.done():
                    task.cancel()
            await asyncio.gather(ending, *reading, *stalled, return_exceptions=True)
        for task in reading:
            task.result()
        seconds = ending.result()
    return seconds, [now - was for now, was in zip(most, before, strict=True)]


def _rss(cluster: Cluster) -> list[int]:
    return [rss_of([cluster.controller_pid]), max(rss_of([pid]) for pid in cluster.worker_pids)]


async def _end(control: Connection, job_id: str, began: float) -> float:
    job = await control.job(f"/v1/jobs/{job_id}?wait=60")
    return _checked_seconds(job, began)


async def _read_all(target: Target, path: str) -> None:
    async with Connection(target) as connection:
        status, _ = await connection.send("GET", path)
        seen = 0
        while chunk := await connection.next_chunk():
            seen += len(chunk)
        if (status, seen) != (200, PIECES * PIECE_BYTES):
            raise RuntimeError(f"a follower got {status} and {seen} bytes of {PIECES * PIECE_BYTES}")


async def _stall(target: Target, path: str) -> None:
    """Asks, and reads nothing more than the answer's head."""
    async with Connection(target) as connection:
        await connection.send("GET", path)
        connection.stall()
        await asyncio.Event().wait()
