"""What is measured of a running cluster, each beside its baseline in the same run."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobcluster_common.identity import CONTROLLER
from jobcluster_common.tls import TlsFiles, channel

# isort: split
import grpc.aio

from bench import bare
from bench.client import Connection, Target
from bench.figures import Result, result
from bench.processes import cpu_of, rss_of

CONCURRENCY = 32
MIB = 1 << 20
FRAME_BYTES = 256 << 10


@dataclass(frozen=True)
class Cluster:
    """A running cluster as the bench needs it."""

    target: Target
    certs: Path
    controller_pid: int
    worker_pids: tuple[int, ...]
    """The workers' launchers."""


async def many(target: Target, count: int, one: Callable[[Connection], Awaitable[None]]) -> float:
    """``count`` calls over CONCURRENCY connections; calls per second."""
    left = iter(range(count))

    async def slot() -> None:
        async with Connection(target) as connection:
            for _ in left:
                await one(connection)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(slot())
    return count / (time.perf_counter() - began)


async def post(connection: Connection, spec: dict[str, Any], query: str = "") -> dict[str, Any]:
    status, body = await connection.call("POST", f"/v1/jobs{query}", spec)
    if status != 201:
        raise RuntimeError(f"POST: {status} {body[:500]!r}")
    job: dict[str, Any] = json.loads(body)
    return job


async def run_true(connection: Connection) -> None:
    job = await post(connection, {"command": "true"}, "?wait=30")
    if job["state"] != "succeeded":
        raise RuntimeError(f"a job ended {job['state']}, {job['reason']}: {job['error_text']}")


def jobs(cluster: Cluster, count: int) -> list[Result]:
    """Jobs from POST to their recorded end, and the CPU time each costs controller and workers."""
    asyncio.run(many(cluster.target, CONCURRENCY * 2, run_true))  # connections, first supervisors
    # Before and after, so that a noisy neighbour on the machine meets both.
    first = bare.spawn(count // 2)
    pids = (cluster.controller_pid, *cluster.worker_pids)
    before = cpu_of(pids)
    rate = asyncio.run(many(cluster.target, count, run_true))
    cpu = (cpu_of(pids) - before) / count
    bare_rate, bare_cpu = (statistics.mean(pair) for pair in zip(first, bare.spawn(count // 2), strict=True))
    return [
        result("jobs at concurrency 32", rate, "jobs/s", bare_rate, at_least=0.45),
        result("CPU per job", cpu * 1000, "ms", bare_cpu * 1000, at_most=4.5),
    ]


def first_byte(cluster: Cluster, count: int, rest_seconds: float) -> Result:
    """POST to the first byte of the output at the client, median."""
    baseline = bare.first_byte(count)

    async def one(control: Connection) -> float:
        if rest_seconds:
            await asyncio.sleep(rest_seconds)
        async with Connection(cluster.target) as reading:
            began = time.perf_counter()
            job = await post(control, {"command": "echo x"})
            status, _ = await reading.send("GET", f"/v1/jobs/{job['job_id']}/output?follow=true")
            if status != 200 or await reading.next_chunk() != b"x\n":
                raise RuntimeError(f"output: {status}")
            return time.perf_counter() - began

    async def run() -> list[float]:
        async with Connection(cluster.target) as control:
            await one(control)
            return [await one(control) for _ in range(count)]

    median = statistics.median(asyncio.run(run()))
    name = "first byte, p50" + (f", after {rest_seconds:g} s of rest" if rest_seconds else "")
    return result(name, median * 1000, "ms", baseline * 1000, at_most=None if rest_seconds else 10)


def output(cluster: Cluster, mib: int) -> Result:
    """One reader of a job's output, against one bare grpc.aio stream with mutual TLS and frames of 256 KiB."""
    job_id = asyncio.run(_written(cluster.target, mib))
    with bare_server("stream", cluster.certs) as ports:
        rates, bare_rates = [], []
        for _ in range(3):  # in turns, so that both meet the same neighbours on the machine
            bare_rates.append(asyncio.run(_bare_stream(ports["grpc"], cluster.certs, mib)))
            rates.append(_read(cluster.target, f"/v1/jobs/{job_id}/output", mib * MIB))
    return result(
        "output, one reader",
        statistics.median(rates),
        "MiB/s",
        statistics.median(bare_rates),
        at_least=0.8,
    )


async def _written(target: Target, mib: int) -> str:
    async with Connection(target) as connection:
        job = await post(connection, {"command": ["head", "-c", str(mib * MIB), "/dev/zero"]}, "?wait=60")
        if job["state"] != "succeeded" or job["output"]["bytes"] != mib * MIB:
            raise RuntimeError(f"the job of the output ended {job['state']} with {job['output']}")
        return str(job["job_id"])


def _read(target: Target, path: str, size: int) -> float:
    parts = urlsplit(target.url)
    connection = http.client.HTTPSConnection(
        parts.hostname or "", parts.port, context=target.context, timeout=60
    )
    buffer, seen = memoryview(bytearray(FRAME_BYTES)), 0
    began = time.perf_counter()
    connection.request("GET", path, headers={"Authorization": f"Bearer {target.token}"})
    answer = connection.getresponse()
    while count := answer.readinto(buffer):
        seen += count
    seconds = time.perf_counter() - began
    connection.close()
    if seen != size:
        raise RuntimeError(f"output: {answer.status}, {seen} bytes of {size}")
    return seen / MIB / seconds


async def _bare_stream(port: int, certs: Path, mib: int) -> float:
    files = TlsFiles(certs / "controller.crt", certs / "controller.key", certs / "ca.crt")
    async with channel(f"127.0.0.1:{port}", files, CONTROLLER) as opened:
        call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = opened.unary_stream("/Bare/Frames")
        frames = mib * MIB // FRAME_BYTES
        seen, began = 0, time.perf_counter()
        async for frame in call(str(frames).encode(), timeout=60):
            seen += len(frame)
        return seen / MIB / (time.perf_counter() - began)


def control_calls(cluster: Cluster, count: int) -> Result:
    """GET of a job, against a bare Starlette route with one grpc.aio hop."""

    async def make() -> str:
        async with Connection(cluster.target) as connection:
            return str((await post(connection, {"command": "true"}, "?wait=30"))["job_id"])

    def asking(path: str) -> Callable[[Connection], Awaitable[None]]:
        async def one(connection: Connection) -> None:
            status, _ = await connection.call("GET", path)
            if status != 200:
                raise RuntimeError(f"GET {path}: {status}")

        return one

    path = f"/v1/jobs/{asyncio.run(make())}"
    with bare_server("hop", cluster.certs) as ports:
        bare_target = Target(f"http://127.0.0.1:{ports['http']}")
        asyncio.run(many(bare_target, CONCURRENCY * 4, asking("/job")))
        baseline = asyncio.run(many(bare_target, count, asking("/job")))
    rate = asyncio.run(many(cluster.target, count, asking(path)))
    return result("GET of a job", rate, "calls/s", baseline, at_least=2.5)


def memory(cluster: Cluster) -> list[Result]:
    """Resident memory of the controller and of one worker with all its own processes."""
    return [
        result("controller, RSS", rss_of([cluster.controller_pid]) / MIB, "MiB", at_most=90),
        result("worker, RSS", max(rss_of([pid]) for pid in cluster.worker_pids) / MIB, "MiB", at_most=80),
    ]


@contextmanager
def bare_server(kind: str, certs: Path) -> Iterator[dict[str, int]]:
    """A server of bare_servers; its ports."""
    root = Path(__file__).resolve().parents[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "bench.bare_servers", kind, certs],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    if server.stdin is None or server.stdout is None:
        raise RuntimeError("no pipes")
    try:
        yield json.loads(server.stdout.readline())
    finally:
        server.stdin.close()
        server.wait(20)
        server.stdout.close()
