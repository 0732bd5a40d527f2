"""No secret, and nothing that a job was given, is in the logs, in what `ps` shows, in refusals or in the metrics.

Where it may be, since it must: in the job's own process (its words and its environment), in its output, in the answers
that show the job's spec to whoever may see it, and in the files of store and worker that only their owner reads.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import secrets
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from jobcluster_common.events import EVENTS

from tests.integration.cluster import Cluster, descendants, eventually, running_cluster

MIB = 1 << 20


def canary(kind: str) -> str:
    return f"canary-{kind}-{secrets.token_hex(12)}"


@dataclass
class Canaries:
    """What must not be seen, by what it is."""

    values: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str) -> str:
        return self.values.setdefault(kind, canary(kind))

    def of_cluster(self, cluster: Cluster) -> None:
        for path in [*cluster.certs.glob("*.token"), *cluster.directory.rglob("*.key")]:
            for number, line in enumerate(path.read_text().split("\n")):
                if len(line) >= 32 and not line.startswith("-----"):
                    self.values[f"{path.name}:{number}"] = line
        assert {"admin.token:0", "join.token:0", "ca.key:1", "worker.key:1"} <= self.values.keys()

    def seen_in(self, text: str) -> set[str]:
        """The kinds that are in the text, plain, in base64 or in hex."""
        return {kind for kind, value in self.values.items() if any(form in text for form in _forms(value))}


def _forms(value: str) -> Iterator[str]:
    yield value
    yield value.encode().hex()
    for lead in range(3):
        # As it looks within a longer text, wherever it begins there.
        coded = base64.b64encode(b"\0" * lead + value.encode()).decode()
        yield coded[4 if lead else 0 : len(coded) - 8]


@dataclass
class Story:
    """A cluster's life, with all that was answered which was no success."""

    cluster: Cluster
    canaries: Canaries
    refusals: list[str] = field(default_factory=list)
    request_ids: dict[int, str] = field(default_factory=dict)

    def spec(self, **more: Any) -> dict[str, Any]:
        """A job that is given a canary in each way there is."""
        add = self.canaries.add
        return {
            "command": ["sh", "read.sh"],
            "args": [add("args")],
            "env": {"SECRET": add("env")},
            "stdin": add("stdin"),
            "files": {
                "read.sh": f"# {add('file')}\ncat >/dev/null\n",
                "blob": {"base64": base64.b64encode(add("blob").encode()).decode()},
            },
            **more,
        }

    def refused(self, status: int, answer: httpx2.Response) -> None:
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        self.refusals.append(answer.text + str(answer.headers))
        self.request_ids[status] = answer.json()["request_id"]


@contextlib.contextmanager
def limited(pid: int, which: int, value: int) -> Iterator[None]:
    """A limit of a living process, for as long as the block lasts."""
    soft, hard = resource.prlimit(pid, which)
    resource.prlimit(pid, which, (value, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, which, (soft, hard))


def open_files(pid: int) -> int:
    return max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1


def run_jobs(story: Story) -> None:
    cluster = story.cluster
    assert cluster.run(story.spec())["state"] == "succeeded"
    assert cluster.run(story.spec(command=["sh", "-c", "exit 3"]))["exit_code"] == 3
    assert cluster.run(story.spec(command=["/no/such/program"]))["reason"] == "start_failed"
    broken = story.spec(path="blob")
    del broken["command"]
    assert cluster.run(broken)["reason"] == "start_failed"
    stopped = cluster.post(story.spec(command=["sh", "-c", "sleep 600; :"]))["job_id"]
    cluster.until(stopped, "running")
    look_at_processes(story)
    cluster.stop_job(stopped)
    with cluster.client() as client:
        live = client.post("/v1/jobs", json=story.spec(), headers={"Accept": "text/event-stream"})
        assert live.status_code == 201 and "event: end" in live.text


def look_at_processes(story: Story) -> None:
    """While the job runs: `ps` and /proc/PID/environ of the product's own processes."""
    cluster = story.cluster
    product: set[int] = {cluster.controller.pid}
    jobs: set[int] = set()
    for worker in cluster.workers:
        product.add(worker.pid)
        for pid, line in descendants(worker.pid).items():
            (product if "jobcluster_worker" in line else jobs).add(pid)
    assert len(product) >= 4 and jobs

    def shown(pids: set[int]) -> str:
        return "".join(Path(f"/proc/{p}/{n}").read_text() for p in pids for n in ("cmdline", "environ"))

    # The job's own process has them: else nothing would follow from that ours have not.
    assert {"args", "env"} <= story.canaries.seen_in(shown(jobs))
    assert story.canaries.seen_in(shown(product)) == set()


def be_refused(story: Story) -> None:
    cluster, add = story.cluster, story.canaries.add
    with cluster.client() as client, cluster.client(None) as stranger, cluster.client("viewer") as viewer:

        def post(spec: Any, **headers: str) -> httpx2.Response:
            return client.post("/v1/jobs", json=spec, headers=headers)

        secret = add("refused")
        for bad in (
            {"command": f"sh '{secret}"},
            {"command": ["sh", secret, 7]},
            {"args": [secret, {"a": secret}]},
            {"env": {"A": [secret]}},
            {"env": {"A": secret + "\0"}},
            {"stdin": {"base64": secret}},
            {"stdin": [secret]},
            {"files": {"x": {"base64": secret}}},
            {"files": {"x": {"text": secret}}},
            {"args": [secret * 5000]},
            {"stdin": secret * 50_000},
            {"colour": secret},
            {"timeout_seconds": secret},
        ):
            story.refused(422, post(story.spec(**bad)))
        for status, body in (
            (400, f'{{"command": "true", "env": {{"A": "{secret}"'),
            (413, secret * 110_000),
        ):
            answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
            story.refused(status, answer)
        story.refused(404, post(story.spec(worker_id="nobody")))
        assert post(story.spec(), **{"Idempotency-Key": "one"}).status_code == 201
        story.refused(422, post(story.spec(env={"A": add("repeat")}), **{"Idempotency-Key": "one"}))
        story.refused(401, stranger.post("/v1/jobs", json=story.spec()))
        bearer = {"Authorization": f"Bearer {add('bearer')}"}
        story.refused(401, stranger.post("/v1/jobs", json=story.spec(), headers=bearer))
        story.refused(401, stranger.get("/v1/jobs", headers={"Authorization": f"Basic {add('basic')}"}))
        story.refused(403, viewer.post("/v1/jobs", json=story.spec()))
        bearer = {"Authorization": f"Bearer {add('join-bearer')}"}
        story.refused(401, stranger.post("/v1/enroll", json={"csr": secret}, headers=bearer))
        join = {"Authorization": f"Bearer {cluster.token('join')}"}
        answer = stranger.post("/v1/enroll", json={"csr": secret}, headers=join)
        story.refused(answer.status_code, answer)
        assert answer.status_code in (400, 422)


def be_refused_by_tls(story: Story) -> None:
    """gRPC's core tells of a handshake without a certificate by a line of its own."""
    context = story.cluster.context()
    context.check_hostname = False
    address = ("127.0.0.1", story.cluster.grpc)
    with (
        contextlib.suppress(OSError),
        socket.create_connection(address, 10) as plain,
        context.wrap_socket(plain) as connection,
    ):
        # In TLS 1.3 the client learns of it at its first read only.
        connection.recv(1)
    log = story.cluster.controller.log
    eventually(lambda: "PEER_DID_NOT_RETURN_A_CERTIFICATE" in log.read_text(), what="the refusal")


def fail_unexpectedly(story: Story) -> None:
    """Faults that nobody foresaw, made by the kernel's limits on the living processes."""
    cluster = story.cluster
    (worker,) = cluster.workers
    job_id = cluster.run({"command": "echo x"})["job_id"]
    big = story.spec(stdin=story.canaries.add("stdin") * (MIB // 64))
    with cluster.client() as client:
        client.get("/v1/jobs")
        # No file may grow beyond what it has, and a little for the log: so the store cannot commit.
        store = max(path.stat().st_size for path in cluster.directory.glob("controller.sqlite3*"))
        room = max(store, cluster.controller.log.stat().st_size) + MIB // 4
        with limited(cluster.controller.pid, resource.RLIMIT_FSIZE, room):
            answers = [client.post("/v1/jobs", json=big) for _ in range(3)]
        story.refused(503, answers[-1])
    assert cluster.run(story.spec())["state"] == "succeeded"
    server = cluster.server_pid(worker)
    with limited(server, resource.RLIMIT_NOFILE, 3), cluster.client() as client:
        answer = client.get(f"/v1/jobs/{job_id}/output")
        assert answer.status_code >= 500, answer.text
        story.refused(answer.status_code, answer)
    supervisor = next(
        pid for pid, line in descendants(worker.pid).items() if "jobcluster_worker" in line and pid != server
    )
    with limited(supervisor, resource.RLIMIT_NOFILE, open_files(supervisor)):
        assert cluster.run(story.spec())["reason"] == "start_failed"
    assert cluster.run(story.spec())["state"] == "succeeded"


def start_bad_workers(story: Story) -> None:
    """One whose token is not known, and one that was given a token itself and not the name of a file."""
    cluster, add = story.cluster, story.canaries.add
    token = cluster.directory / "wrong.token"
    token.write_text(add("wrong-join-token"))
    stranger = cluster.add_worker({"auth": {"join": str(token)}})
    log = cluster.directory / stranger.name / "worker.log"
    eventually(lambda: log.exists() and "enrolment_failed" in log.read_text(), what="the refusal")
    stranger.stop()
    wrong = cluster.add_worker({"auth": {"join": str(token), "token": add("setting")}})
    assert wrong.wait() == 2
    assert len(wrong.log.read_text().splitlines()) == 1


def refuse_at_the_end(story: Story) -> None:
    """A worker that is gone takes no job; a controller that stops takes none either."""
    cluster = story.cluster
    first = cluster.workers[0]
    worker_id = cluster.worker_of(first)
    assert first.stop() == 0
    with cluster.client() as client:
        story.refused(409, client.post(f"/v1/workers/{worker_id}/jobs", json=story.spec()))
        metrics = client.get("/metrics").text
    assert "jobcluster_" in metrics
    assert story.canaries.seen_in(metrics) == set()


def texts(cluster: Cluster) -> dict[str, str]:
    return {
        str(path.relative_to(cluster.directory)): path.read_text(errors="surrogateescape")
        for path in cluster.directory.rglob("*.log")
    }


def check_json(story: Story, logs: dict[str, str]) -> None:
    """Every line is an event of the table, or a library's word; a refusal is found by its request_id."""
    events = [
        json.loads(line)
        for name in ("controller.log", "worker-1/worker.log")
        for line in logs[name].splitlines()
    ]
    for event in events:
        assert "logger" in event or event["event"] in EVENTS, event
        assert event["timestamp"].endswith("Z")
    ours = [event for event in events if "logger" not in event]
    assert {e["process"] for e in ours} == {"controller", "launcher", "supervisor", "server"}
    for status, request_id in story.request_ids.items():
        (served,) = [e for e in ours if e.get("request_id") == request_id and e["event"] == "request_served"]
        assert (served["status"], served["process"]) == (status, "controller")
    for event in ours:
        if event["event"].startswith("task_"):
            assert {"job_id", "task_rank", "attempt", "worker_id"} <= event.keys(), event
        if event["event"] in ("request_served", "http_refused", "rpc_served", "rpc_refused", "job_accepted"):
            assert event["request_id"]
    accepted = {e["job_id"]: e for e in ours if e["event"] == "job_accepted"}
    ended = {e["job_id"]: e for e in ours if e["event"] == "job_ended"}
    assert len(accepted) > 5 and accepted.keys() == ended.keys()
    # The end is the worker's news, and no part of the request that happened to begin the work on it.
    assert not any("request_id" in event for event in ended.values())
    assert all(event["attempt"] and event["worker_id"] for event in ended.values())
    # One request's output: the door's event and the worker's carry one id.
    here = {e["request_id"] for e in ours if e["event"] == "request_served" and "output" in (e["path"] or "")}
    there = {
        e.get("request_id") for e in ours if e["process"] == "server" and "StreamJob" in e.get("rpc", "")
    }
    assert here & there


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_and_nothing_that_a_job_was_given_is_seen_where_it_must_not_be(
    tmp_path: Path, form: str
) -> None:
    log = {"log": {"level": "debug", "format": form}}
    with running_cluster(tmp_path, workers=1, controller_settings=log, worker_settings=log) as cluster:
        story = Story(cluster, Canaries())
        story.canaries.of_cluster(cluster)
        run_jobs(story)
        be_refused(story)
        be_refused_by_tls(story)
        fail_unexpectedly(story)
        start_bad_workers(story)
        refuse_at_the_end(story)
        if form == "json":
            cluster.controller.signal(signal.SIGTERM)
            assert cluster.controller.wait() == 0
    logs = texts(cluster)
    assert {"controller.log", "worker-1.log", "worker-1/worker.log", "worker-2/worker.log"} <= logs.keys()
    whole = "\n".join(logs.values())
    # What was to happen did: an unexpected fault of each kind is there, with its traceback.
    for name in (
        "store_commit_failed",
        "rpc_failed",
        "http_refused",
        "enrolment_failed",
        "job_ended",
        "task_ended",
    ):
        assert name in whole, name
    assert "Traceback" in whole or "exc_type" in whole
    for name, text in logs.items():
        assert story.canaries.seen_in(text) == set(), name
    assert story.canaries.seen_in("\n".join(story.refusals)) == set()
    if form == "json":
        check_json(story, logs)


def test_what_would_be_a_leak_is_found() -> None:
    canaries = Canaries()
    value = canaries.add("env")
    for text in (value, f"env={value!r}", value.encode().hex(), json.dumps({"a": [value]})):
        assert canaries.seen_in(text) == {"env"}
    for lead in ("", "a", "ab", "abc"):
        assert canaries.seen_in(base64.b64encode(f"{lead}{value}, and more".encode()).decode()) == {"env"}
    assert canaries.seen_in(canary("env")) == set()
