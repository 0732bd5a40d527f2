"""Whatever breaks between a job and its reader: never a false end, never a gap, never a repeat."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from jobcluster.v1 import controller_pb2, controller_pb2_grpc
from jobcluster_common.identity import CONTROLLER

from tests.integration.cluster import Cluster, eventually
from tests.integration.proxy import Harm, Proxy, proxy_to
from tests.integration.reader import FORMS, LINES, RAW
from tests.integration.test_output import raw_follow, read_to_the_end
from tests.integration.test_trust import state_files, stub_channel
from tests.integration.truth import MIB, known_job, known_sha256, reader, size, watches

TAILS = size(30, 200)
TERMINATOR = b"0\r\n\r\n"

# Its own account of what it wrote goes the other way: to stderr.
WRITE_AND_EXIT = """
head -c 1048576 /dev/urandom > data; sha256sum < data | cut -c 1-64 >&2; exec cat data
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_jobs_that_write_a_mebibyte_and_exit_while_the_server_is_away_are_whole(
    own_cluster: Cluster, how: str
) -> None:
    worker = own_cluster.workers[0]
    left = TAILS
    posted: list[dict[str, Any]] = []
    while left:
        batch = [own_cluster.post({"command": ["bash", "-c", WRITE_AND_EXIT]}) for _ in range(min(left, 15))]
        left -= len(batch)
        posted += batch
        server = own_cluster.server_pid(worker)
        if how == "stopped":
            os.kill(server, signal.SIGSTOP)
            time.sleep(1.0)  # the fault itself: so long nobody answers
            os.kill(server, signal.SIGCONT)
        else:
            os.kill(server, signal.SIGKILL)
        for job in batch:
            own_cluster.until(job["job_id"], "succeeded")
    for job in posted:
        ended = own_cluster.job(job["job_id"])
        told = own_cluster.output(job["job_id"], stream="stderr").decode().strip()
        data = own_cluster.output(job["job_id"], stream="stdout")
        assert (len(data), hashlib.sha256(data).hexdigest()) == (MIB, told)
        assert (ended["output"]["bytes"], ended["exit_code"]) == (MIB + 65, 0)


@contextmanager
def half_read(cluster: Cluster, job_id: str) -> Iterator[list[bytes]]:
    """A raw socket that has read the head of a followed output and stopped in the middle of a chunk.

    What it saw in all is in the list once the block has ended.
    """
    s = raw_follow(cluster, job_id)
    seen = b""
    while len(seen) < 100_000:
        seen += s.recv(10_000)
    everything = [seen]
    try:
        yield everything
        everything[0] += read_to_the_end(s)
    finally:
        s.close()


def unchunked(answer: bytes) -> bytes:
    """The whole bytes of a chunked body that may break off anywhere."""
    body, out = answer.partition(b"\r\n\r\n")[2], b""
    while body:
        head, found, rest = body.partition(b"\r\n")
        if not found:
            break
        length = int(head, 16)
        out += rest[:length]
        body = rest[length + 2 :]
    return out


@pytest.mark.timeout(180)
@pytest.mark.parametrize("victim", ["controller", "server"])
def test_a_process_killed_in_the_middle_of_a_chunk_gives_no_terminator_and_the_rest_is_exact(
    own_cluster: Cluster, victim: str
) -> None:
    total = 24 * MIB
    job = own_cluster.run(known_job(total))
    with half_read(own_cluster, job["job_id"]) as seen:
        if victim == "controller":
            own_cluster.controller.signal(signal.SIGKILL)
            own_cluster.controller.wait()
        else:
            os.kill(own_cluster.server_pid(own_cluster.workers[0]), signal.SIGKILL)
    assert not seen[0].endswith(TERMINATOR)
    had = unchunked(seen[0])
    assert 0 < len(had) < total
    if victim == "controller":
        own_cluster.controller.start()
    own_cluster.wait_ready(1)
    rest = eventually(lambda: try_output(own_cluster, job["job_id"], len(had)), what="the rest")
    assert hashlib.sha256(had + rest).hexdigest() == known_sha256(total)


def try_output(cluster: Cluster, job_id: str, offset: int) -> bytes:
    with cluster.client() as client:
        answer = client.get(f"/v1/jobs/{job_id}/output", params={"offset": offset})
        assert answer.status_code in (200, 503), answer.text
        return answer.content if answer.status_code == 200 else b""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("harm", list(Harm))
def test_harm_between_client_and_controller_is_seen_as_a_cut_and_the_rest_is_exact(
    cluster: Cluster, harm: Harm
) -> None:
    total, rng = 6 * MIB, random.Random(harm)
    job = cluster.post(known_job(total, pause=0.02))
    with proxy_to("127.0.0.1", cluster.https) as proxy, ThreadPoolExecutor(len(FORMS)) as pool:
        for _ in range(5):
            proxy.harm(harm, rng.randrange(3000, 2 * MIB))
        readings = [
            r.result()
            for r in [
                pool.submit(
                    reader(cluster, job["job_id"], form, port=proxy.port, timeout_seconds=3.0).read,
                )
                for form in FORMS
            ]
        ]
        assert proxy.harmed == 5
    assert {(r.offset, r.sha256) for r in readings} == {(total, known_sha256(total))}
    # One may have hit a handshake or the last, already useless bytes of a connection.
    assert sum(r.cuts for r in readings) >= 4


@contextmanager
def between(cluster: Cluster) -> Iterator[Proxy]:
    """A proxy between the controller and its only worker.

    The worker is registered once more, in its own name and incarnation, with the proxy's address.
    """
    worker = cluster.workers[0]
    known = cluster.list_workers()[0]
    host, _, port = known["address"].rpartition(":")
    log = (cluster.directory / worker.name / "worker.log").read_text()
    incarnation = next(
        line["incarnation"]
        for line in map(json.loads, reversed(log.splitlines()))
        if line["event"] == "server_listening"
    )
    with proxy_to(host, int(port)) as proxy:
        channel = stub_channel(cluster, f"127.0.0.1:{cluster.grpc}", CONTROLLER, state_files(cluster, worker))
        with channel:
            controller_pb2_grpc.ControllerStub(channel).RegisterWorker(
                controller_pb2.RegisterWorkerRequest(
                    address=f"127.0.0.1:{proxy.port}",
                    incarnation=incarnation,
                    capacity=controller_pb2.WorkerCapacity(cpu=2, memory_bytes=1 << 32, tasks=100),
                ),
                timeout=10,
            )
        assert cluster.list_workers()[0]["address"].endswith(f":{proxy.port}")
        yield proxy


@pytest.mark.timeout(180)
@pytest.mark.parametrize("harm", list(Harm))
def test_harm_between_controller_and_worker_is_seen_as_a_cut_and_the_rest_is_exact(
    own_cluster: Cluster, harm: Harm
) -> None:
    total, rng = 6 * MIB, random.Random(harm)
    server = own_cluster.server_pid(own_cluster.workers[0])
    # Keepalive finds a frozen link after 15 s: once is enough.
    times = 1 if harm is Harm.FREEZE else 4
    with between(own_cluster) as proxy, ThreadPoolExecutor(2) as pool:
        job = own_cluster.post(known_job(total, pause=0.05))
        own_cluster.until(job["job_id"], "running")
        for _ in range(times):
            proxy.harm(harm, rng.randrange(100_000, 2 * MIB))
        readings = [
            r.result()
            for r in [pool.submit(reader(own_cluster, job["job_id"], form).read) for form in (RAW, LINES)]
        ]
        assert proxy.harmed == times
        ended = own_cluster.job(job["job_id"], wait=60)
        assert (ended["state"], ended["exit_code"]) == ("succeeded", 0)
        eventually(lambda: watches(server) == 0, what="no follower left on the worker")
    assert {(r.offset, r.sha256) for r in readings} == {(total, known_sha256(total))}
    assert sum(r.cuts for r in readings) >= 1
