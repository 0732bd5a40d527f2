"""Readers that stall, readers in crowds, readers that vanish: the job does not notice, and nothing is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import signal
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration import reader as reader_module
from tests.integration.cluster import Cluster, descendants, eventually
from tests.integration.reader import FORMS
from tests.integration.truth import (
    MIB,
    comes_back_to,
    known_job,
    known_sha256,
    memory,
    metric,
    open_files,
    open_gate,
    reset_peak,
    size,
    watches,
)

STALLED = 20
FOLLOWERS = size(100, 200)
CANCELS = size(150, 500)
GROWTH_MAX = 32 * MIB


@contextlib.contextmanager
def reading_processes(cluster: Cluster, job_id: str, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Readers of all forms, each past its first bytes."""
    started = []
    try:
        for number in range(count):
            arguments = [str(cluster.https), str(cluster.certs / "ca.crt"), cluster.token("admin"), job_id]
            command = [sys.executable, str(reader_module.__file__), *arguments, FORMS[number % len(FORMS)]]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == "began\n"
        yield started
    finally:
        for process in started:
            process.kill()  # nothing, if it was waited for
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.mark.timeout(size(300, 1800))
def test_twenty_stopped_readers_hold_neither_the_job_nor_memory_and_then_get_every_byte(
    own_cluster: Cluster,
) -> None:
    total = size(24 * MIB, 512 * MIB)
    job = own_cluster.post(known_job(total, gate=True))
    own_cluster.until(job["job_id"], "running")  # before that its process bears its supervisor's name
    watched = {
        "controller": own_cluster.controller.pid,
        "server": own_cluster.server_pid(own_cluster.workers[0]),
        **{
            f"supervisor {pid}": pid
            for pid, line in descendants(own_cluster.workers[0].pid).items()
            if "launcher" in line and "server" not in line
        },
    }
    assert len(watched) >= 3
    with reading_processes(own_cluster, job["job_id"], STALLED) as readers:
        for process in readers:
            process.send_signal(signal.SIGSTOP)
        before = {name: memory(pid) for name, pid in watched.items()}
        for pid in watched.values():
            reset_peak(pid)
        open_gate(own_cluster, job["job_id"])
        ended = own_cluster.job(job["job_id"], wait=60)
        assert (ended["state"], ended["output"]["bytes"]) == ("succeeded", total)
        for process in readers:
            process.send_signal(signal.SIGCONT)
        told = [json.loads(process.communicate()[0]) for process in readers]
        grown = {name: memory(pid, "VmHWM") - before[name] for name, pid in watched.items()}
    expected = known_sha256(total)
    assert {(t["bytes"], t["sha256"]) for t in told} == {(total, expected)}
    assert ended["output"]["sha256"] == expected
    assert max(grown.values()) < GROWTH_MAX, grown


async def followed(cluster: Cluster, context: ssl.SSLContext, job_id: str, began: asyncio.Queue[None]) -> str:
    """The hash of a raw followed stream, whose chunked coding is checked to its terminator."""
    come, go = await asyncio.open_connection(
        "127.0.0.1", cluster.https, ssl=context, server_hostname="localhost"
    )
    try:
        go.write(request(cluster, "GET", f"/v1/jobs/{job_id}/output?follow=true"))
        head = await come.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0], head
        digest = hashlib.sha256()
        while length := int(await come.readuntil(b"\r\n"), 16):
            digest.update(await come.readexactly(length))
            assert await come.readexactly(2) == b"\r\n"
            began.put_nowait(None)
        assert await come.readexactly(2) == b"\r\n"
        return digest.hexdigest()
    finally:
        go.close()


def request(cluster: Cluster, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {cluster.token('admin')}",
        f"Content-Length: {len(body)}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.timeout(240)
async def test_a_crowd_of_followers_of_one_job_all_get_the_same_bytes(own_cluster: Cluster) -> None:
    total = size(1 * MIB, 8 * MIB)
    job = await asyncio.to_thread(own_cluster.post, known_job(total, gate=True, pause=0.02))
    context, began = own_cluster.context(), asyncio.Queue[None]()
    controller, server = own_cluster.controller.pid, own_cluster.server_pid(own_cluster.workers[0])
    before = memory(controller), memory(server)
    for pid in (controller, server):
        reset_peak(pid)
    async with asyncio.TaskGroup() as crowd:
        followers = [
            crowd.create_task(followed(own_cluster, context, job["job_id"], began)) for _ in range(FOLLOWERS)
        ]
        for _ in followers:
            await began.get()
        assert watches(server) == 1
        await asyncio.to_thread(open_gate, own_cluster, job["job_id"])
    assert {f.result() for f in followers} == {known_sha256(total)}
    grown = memory(controller, "VmHWM") - before[0], memory(server, "VmHWM") - before[1]
    assert max(grown) < GROWTH_MAX, grown


def vanish(cluster: Cluster, context: ssl.SSLContext, sent: bytes, rng: random.Random) -> None:
    """A client that goes away at a random point, in order or by a reset."""
    plain = socket.create_connection(("127.0.0.1", cluster.https), timeout=20)
    if rng.random() < 0.5:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if rng.random() < 0.1:
        plain.close()
        return
    with contextlib.suppress(OSError), context.wrap_socket(plain, server_hostname="localhost") as s:
        s.sendall(sent[: rng.choice([len(sent), len(sent), len(sent), rng.randrange(len(sent))])])
        s.settimeout(rng.choice([0.001, 0.01, 0.1]))
        for _ in range(rng.randrange(4)):
            s.recv(rng.choice([1, 4096, 65536]))


def doors_that_last(cluster: Cluster, live: str, ended: str) -> list[bytes]:
    slow = json.dumps({"command": "true"}).encode()
    return [
        *(request(cluster, "GET", f"/v1/jobs/{live}/output?follow=true", Accept=form) for form in FORMS),
        *(request(cluster, "GET", f"/v1/jobs/{ended}/output?follow=true", Accept=form) for form in FORMS),
        request(cluster, "GET", f"/v1/jobs/{ended}/output"),
        request(cluster, "GET", f"/v1/jobs/{ended}/output?tail=100000"),
        request(cluster, "GET", f"/v1/jobs/{live}?wait=30"),
        request(cluster, "POST", "/v1/jobs", slow, Accept="text/plain"),
        request(cluster, "POST", "/v1/jobs?wait=30", slow),
        request(cluster, "GET", "/v1/jobs"),
        request(cluster, "GET", "/metrics"),
    ]


def counts(cluster: Cluster) -> dict[str, int]:
    server = cluster.server_pid(cluster.workers[0])
    names = ("jobcluster_http_streams", "jobcluster_output_streams", "jobcluster_event_loop_tasks")
    return {
        "controller fds": open_files(cluster.controller.pid),
        "server fds": open_files(server),
        "server watches": watches(server),
        **{name: int(metric(cluster, name)) for name in names},
    }


@pytest.mark.timeout(240)
def test_clients_that_vanish_at_any_point_leave_no_task_descriptor_or_rpc(own_cluster: Cluster) -> None:
    live = own_cluster.post({"command": ["sh", "-c", "while echo tick; do sleep 0.05; done"]})["job_id"]
    ended = own_cluster.run(known_job(2 * MIB))["job_id"]
    eventually(lambda: own_cluster.output(live), what="its output")
    context, rng = own_cluster.context(), random.Random(11)
    ways = doors_that_last(own_cluster, live, ended)
    for way in ways:  # once each, so that what is made at the first use counts in the base
        vanish(own_cluster, context, way, random.Random(1))
    eventually(lambda: not unfinished(own_cluster, live), what="no other job")
    eventually(lambda: metric(own_cluster, "jobcluster_output_streams") == 0, what="no stream")
    base = counts(own_cluster)
    for _ in range(CANCELS):
        vanish(own_cluster, context, rng.choice(ways), rng)
    eventually(lambda: not unfinished(own_cluster, live), what="no other job")
    for name in base:
        comes_back_to(base[name], lambda name=name: counts(own_cluster)[name], name, slack=2)  # type: ignore[misc]
    assert own_cluster.job(live)["state"] == "running"
    own_cluster.stop_job(live)


def unfinished(cluster: Cluster, but: str) -> list[Any]:
    with cluster.client() as client:
        jobs = client.get("/v1/jobs", params={"limit": 200}).json()["jobs"]
    return [j for j in jobs if not j["done"] and j["job_id"] != but]
