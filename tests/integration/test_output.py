"""Output as it was written: from byte 0, to any number of readers, with an end that cannot be mistaken."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import Cluster, descendants, eventually

MIB = 1 << 20
RANDOM = """
import random, sys, hashlib, time
rng, left, out = random.Random(7), {size}, sys.stdout.buffer
while left:
    n = min(left, rng.choice([7, 1000, 65536, 1 << 20]))
    out.write(rng.randbytes(n)); out.flush(); left -= n
    time.sleep(0.001)
"""


def random_job(size: int) -> dict[str, Any]:
    return {"command": "python3", "path": "r.py", "files": {"r.py": RANDOM.format(size=size)}}


def follow(cluster: Cluster, job_id: str, **params: Any) -> bytes:
    with cluster.client(timeout=120) as client:
        answer = client.get(f"/v1/jobs/{job_id}/output", params={"follow": "true", **params})
        assert answer.status_code == 200, answer.text
        return answer.content


def test_eight_mib_of_random_bytes_reach_five_followers_that_joined_at_different_times(
    cluster: Cluster,
) -> None:
    job = cluster.post(random_job(8 * MIB))
    with ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(follow, cluster, job["job_id"]) for _ in range(2)]
        eventually(lambda: cluster.job(job["job_id"])["state"] != "starting", what="a start")
        readers += [pool.submit(follow, cluster, job["job_id"]) for _ in range(2)]
        end = cluster.job(job["job_id"], wait=60)
        readers.append(pool.submit(follow, cluster, job["job_id"]))
        hashes = {hashlib.sha256(r.result()).hexdigest() for r in readers}
    assert end["output"]["bytes"] == 8 * MIB
    assert hashes == {end["output"]["sha256"]}


def test_stdout_and_stderr_apart_are_exact_and_have_offsets_of_their_own(cluster: Cluster) -> None:
    job = cluster.run({"command": ["sh", "-c", "for i in 1 2 3; do echo out$i; echo e$i >&2; done"]})
    assert cluster.output(job["job_id"], stream="stdout") == b"out1\nout2\nout3\n"
    assert cluster.output(job["job_id"], stream="stderr") == b"e1\ne2\ne3\n"
    assert cluster.output(job["job_id"], stream="stderr", offset=4) == b"2\ne3\n"
    assert cluster.output(job["job_id"], stream="stdout", offset=15) == b""
    assert sorted(cluster.output(job["job_id"]).split()) == sorted(b"out1 e1 out2 e2 out3 e3".split())
    with cluster.client() as client:
        beyond = client.get(f"/v1/jobs/{job['job_id']}/output", params={"stream": "stdout", "offset": 16})
        assert beyond.status_code == 416 and beyond.headers["content-type"].startswith(
            "application/problem+json"
        )


def test_one_pipe_keeps_the_order_in_which_it_was_written(cluster: Cluster) -> None:
    script = "for i in 1 2 3 4 5; do echo o$i; echo e$i >&2; done"
    job = cluster.run({"command": ["sh", "-c", script], "output": {"separate": False}})
    assert cluster.output(job["job_id"]) == b"".join(f"o{i}\ne{i}\n".encode() for i in range(1, 6))


def test_a_snapshot_says_its_length_and_whether_it_is_complete(cluster: Cluster) -> None:
    job = cluster.post(
        {"command": ["sh", "-c", "echo first; while [ ! -e $HOME/gone ]; do sleep 0.05; done"]}
    )
    eventually(lambda: cluster.output(job["job_id"]) == b"first\n", what="the first line")
    with cluster.client() as client:
        snapshot = client.get(f"/v1/jobs/{job['job_id']}/output")
        assert snapshot.headers["content-length"] == "6"
        assert snapshot.headers["jobcluster-output-complete"] == "false"
        cluster.stop_job(job["job_id"])
        ended = client.get(f"/v1/jobs/{job['job_id']}/output", headers={"Range": "bytes=2-4"})
        assert (ended.status_code, ended.content) == (206, b"rst")
        assert ended.headers["content-range"] == "bytes 2-4/6"
        tail = client.get(f"/v1/jobs/{job['job_id']}/output", params={"tail": 1})
        assert tail.content == b"first\n" and tail.headers["jobcluster-output-complete"] == "true"


def test_a_truncated_output_has_its_head_and_tells_what_was_dropped(cluster: Cluster) -> None:
    spec = {"command": "head -c 300000 /dev/zero", "output": {"max_bytes": 100_000}}
    job = cluster.run(spec)
    assert (job["state"], job["reason"]) == ("succeeded", "exited"), job
    kept = len(cluster.output(job["job_id"]))
    assert 90_000 <= kept <= 100_000
    assert job["output"]["bytes"] == kept and job["output"]["dropped_bytes"] == 300_000 - kept


def test_an_event_stream_gives_the_output_by_cursor_and_one_end(cluster: Cluster) -> None:
    job = cluster.run({"command": ["sh", "-c", "echo hello; exit 4"]})
    with cluster.client() as client:
        text = client.get(
            f"/v1/jobs/{job['job_id']}/output",
            headers={"Accept": "text/event-stream"},
            params={"follow": "true"},
        ).text
    events = [
        dict(line.split(": ", 1) for line in block.splitlines())
        for block in text.replace("\r\n", "\n").strip().split("\n\n")
    ]
    kinds = [e["event"] for e in events]
    assert kinds[-1] == "end" and set(kinds[:-1]) == {"output"}
    data = json.loads(events[0]["data"])
    assert (data["task"], data["stream"], data["offset"], base64.b64decode(data["base64"])) == (
        0,
        "merged",
        0,
        b"hello\n",
    )
    end = json.loads(events[-1]["data"])
    assert (end["state"], end["reason"], end["exit_code"]) == ("failed", "exited", 4)
    assert end["tasks"] == [{"rank": 0, "bytes": 6, "sha256": hashlib.sha256(b"hello\n").hexdigest()}]
    with cluster.client() as client:
        again = client.get(
            f"/v1/jobs/{job['job_id']}/output",
            headers={"Accept": "text/event-stream", "Last-Event-ID": events[0]["id"]},
        ).text
    assert "event: output" not in again and "event: end" in again


def test_one_curl_is_enough_the_post_itself_streams(cluster: Cluster) -> None:
    with cluster.client() as client:
        answer = client.post("/v1/jobs", json={"command": "echo streamed"}, headers={"Accept": "text/plain"})
        assert (answer.status_code, answer.content) == (201, b"streamed\n")


def raw_follow(cluster: Cluster, job_id: str, version: str = "1.1") -> socket.socket:
    plain = socket.create_connection(("127.0.0.1", cluster.https), timeout=30)
    s = cluster.context().wrap_socket(plain, server_hostname="localhost")
    s.sendall(
        f"GET /v1/jobs/{job_id}/output?follow=true HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n"
        f"Authorization: Bearer {cluster.token('admin')}\r\n\r\n".encode()
    )
    return s


def read_to_the_end(s: socket.socket) -> bytes:
    seen = b""
    try:
        while data := s.recv(65536):
            seen += data
    except OSError:
        pass  # a reset: how it ended is for the caller to judge by what came
    finally:
        s.close()
    return seen


def test_a_followed_stream_that_is_cut_does_not_look_like_an_end(own_cluster: Cluster) -> None:
    job = own_cluster.post({"command": ["sh", "-c", "echo one; sleep 600"]})
    eventually(lambda: b"one" in own_cluster.output(job["job_id"]), what="its output")
    s = raw_follow(own_cluster, job["job_id"])
    seen = b""
    while b"one\n" not in seen:
        seen += s.recv(65536)
    os.kill(own_cluster.server_pid(own_cluster.workers[0]), 9)
    rest = read_to_the_end(s)
    assert not (seen + rest).endswith(b"0\r\n\r\n"), rest
    eventually(lambda: own_cluster.stop_job(job["job_id"], wait=20)["state"] == "stopped", what="a stop")
    s = raw_follow(own_cluster, job["job_id"])
    s.settimeout(10)
    seen = b""
    while not seen.endswith(b"0\r\n\r\n"):
        chunk = s.recv(65536)
        assert chunk, seen
        seen += chunk
    s.close()
    assert b"one\n" in seen


def test_http_1_0_clients_are_refused_for_live_streams(cluster: Cluster) -> None:
    job = cluster.run({"command": "echo x"})
    s = raw_follow(cluster, job["job_id"], version="1.0")
    assert read_to_the_end(s).split(b"\r\n")[0].split(b" ")[1] == b"505"


def switches(pid: int) -> int:
    return sum(
        int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


@pytest.mark.timeout(180)
def test_a_silent_followed_job_costs_nothing_while_it_is_silent(own_cluster: Cluster) -> None:
    worker = own_cluster.workers[0]
    job = own_cluster.post({"command": ["sh", "-c", "echo up; sleep 600"]})
    eventually(lambda: own_cluster.output(job["job_id"]) == b"up\n", what="its output")
    server = own_cluster.server_pid(worker)
    leader = next(p for p, line in descendants(worker.pid).items() if line.startswith("sh -c echo up"))
    supervisor = int(Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()[1])

    def during(seconds: float) -> tuple[int, int]:
        before = switches(supervisor), switches(server)
        time.sleep(seconds)  # the measure itself: what happens in a span of silence
        return switches(supervisor) - before[0], switches(server) - before[1]

    idle, without = during(5)
    sockets = [raw_follow(own_cluster, job["job_id"]) for _ in range(50)]
    for s in sockets:
        seen = b""
        while b"up\n" not in seen:
            seen += s.recv(65536)
    silent, with_followers = during(5)
    assert (idle, silent) == (0, 0)
    assert with_followers <= without * 2 + 50, (without, with_followers)
    waiting = threading.Thread(target=lambda: [read_to_the_end(s) for s in sockets])
    waiting.start()
    own_cluster.stop_job(job["job_id"])
    waiting.join(30)
    assert not waiting.is_alive()
