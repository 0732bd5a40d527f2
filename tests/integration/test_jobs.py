"""From one HTTP call to a process on a worker and back."""

from __future__ import annotations

import base64
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster, descendants, eventually


def test_the_seeds_body_verbatim_starts_queries_streams_and_stops_by_worker_id_and_job_id(
    cluster: Cluster,
) -> None:
    with cluster.client() as client:
        worker_id = client.get("/v1/workers").json()["workers"][0]["worker_id"]
        body = {"worker_id": worker_id, "path": "worker/scripts/run.sh", "command": "bash"}
        created = client.post("/v1/jobs", json=body)
        assert created.status_code == 201, created.text
        job_id = created.json()["job_id"]
        assert created.headers["location"].endswith(job_id)
        job = client.get(f"/v1/workers/{worker_id}/jobs/{job_id}", params={"wait": 20}).json()
        assert (job["state"], job["reason"], job["exit_code"], job["done"], job["error"]) == (
            "succeeded",
            "exited",
            0,
            True,
            False,
        )
        assert job["worker_id"] == worker_id
        output = client.get(f"/v1/workers/{worker_id}/jobs/{job_id}/output")
        assert output.status_code == 200 and output.content
        assert output.headers["jobcluster-output-complete"] == "true"
        stopped = client.post(f"/v1/workers/{worker_id}/jobs/{job_id}/stop")
        assert stopped.status_code == 200 and stopped.json()["state"] == "succeeded"


def test_the_two_path_forms_name_the_same_job_and_another_worker_does_not_hold_it(cluster: Cluster) -> None:
    first, second = (w["worker_id"] for w in cluster.list_workers()[:2])
    with cluster.client() as client:
        job = client.post(f"/v1/workers/{first}/jobs", json={"command": "true"}, params={"wait": 20}).json()
        assert job["worker_id"] == first
        assert client.get(f"/v1/workers/{first}/jobs/{job['job_id']}").status_code == 200
        assert client.get(f"/v1/workers/{second}/jobs/{job['job_id']}").status_code == 404
        assert client.get(f"/v1/workers/{second}/jobs/{job['job_id']}/output").status_code == 404
        other = client.post(f"/v1/workers/{first}/jobs", json={"command": "true", "worker_id": second})
        assert other.status_code == 422 and other.json()["errors"][0]["pointer"] == "/worker_id"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"command": ["echo", "one two", "$HOME", "*"]}, b"one two $HOME *\n"),
        ({"command": "echo 'a  b' c", "args": ["d e"]}, b"a  b c d e\n"),
        ({"command": "bash", "path": "s.sh", "files": {"s.sh": 'echo "$0|$1"'}, "args": ["x y"]}, None),
        ({"command": "cat", "stdin": "text \u00e4\n"}, "text \u00e4\n".encode()),
        (
            {"command": "cat", "stdin": {"base64": base64.b64encode(bytes(range(256))).decode()}},
            bytes(range(256)),
        ),
        ({"command": "wc -c"}, b"0\n"),
        ({"command": "sh -c 'echo $A$B; echo $LD_PRELOAD'", "env": {"A": "1", "B": "2 3"}}, b"12 3\n\n"),
        (
            {"command": "sh -c 'cat sub/data; ls -l sub/data | cut -c1-10'", "files": {"sub/data": "x\n"}},
            b"x\n-rwxr-xr-x\n",
        ),
        ({"path": "go", "files": {"go": "#!/bin/sh\necho alone $1"}, "args": ["1"]}, b"alone 1\n"),
        ({"command": "sh -c 'test $PWD = $HOME && touch here && echo fresh'"}, b"fresh\n"),
    ],
)
def test_a_job_gets_its_arguments_files_stdin_and_environment(
    cluster: Cluster, spec: dict[str, object], expected: bytes | None
) -> None:
    job = cluster.run(spec)
    assert (job["state"], job["exit_code"]) == ("succeeded", 0), job
    output = cluster.output(job["job_id"])
    if expected is None:
        path, _, argument = output.decode().strip().partition("|")
        assert path.endswith("/s.sh") and argument == "x y"
    else:
        assert output == expected


def test_a_python_template_finds_itself_and_its_siblings(cluster: Cluster) -> None:
    code = (
        "import os; print(__file__); print(open(os.path.join(os.path.dirname(__file__), 'lib', 'n')).read())"
    )
    job = cluster.run(
        {"command": "python3", "path": "main.py", "files": {"main.py": code, "lib/n": "sibling"}}
    )
    lines = cluster.output(job["job_id"]).decode().splitlines()
    assert lines[0].endswith("/main.py") and lines[1] == "sibling", job
    template = cluster.run({"command": "bash", "path": "hello.sh"})
    assert template["state"] == "succeeded", template
    assert cluster.output(template["job_id"])


def test_the_environment_is_built_from_nothing_with_the_names_that_distributed_programs_expect(
    cluster: Cluster,
) -> None:
    job = cluster.run({"command": "env"})
    env = dict(line.split("=", 1) for line in cluster.output(job["job_id"]).decode().splitlines())
    assert env["JOBCLUSTER_JOB_ID"] == job["job_id"]
    assert env["JOBCLUSTER_WORKER_ID"] == job["worker_id"]
    for name, value in {
        "JOBCLUSTER_TASK_RANK": "0",
        "JOBCLUSTER_TASK_COUNT": "1",
        "JOBCLUSTER_ATTEMPT": "1",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "PYTHONUNBUFFERED": "1",
    }.items():
        assert env[name] == value
    assert {"JOBCLUSTER_PEERS", "MASTER_ADDR", "MASTER_PORT", "PATH", "HOME", "LANG", "TMPDIR"} <= env.keys()
    assert ".venv" not in env["PATH"] and not {"VIRTUAL_ENV", "PYTHONPATH", "SSL_CERT_FILE"} & env.keys()


def test_a_process_holds_only_its_three_descriptors_default_signals_and_its_own_session(
    cluster: Cluster,
) -> None:
    code = (
        "import os, signal\n"
        "print(sorted(int(f) for f in os.listdir('/proc/self/fd'))[:-1])\n"
        "print(os.getsid(0) == os.getpid(), signal.getsignal(signal.SIGPIPE))\n"
        "print([l for l in open('/proc/self/status') if l.startswith(('SigBlk', 'SigIgn'))])\n"
    )
    job = cluster.run({"command": "sh -c", "args": ["exec python3 -S main.py"], "files": {"main.py": code}})
    lines = cluster.output(job["job_id"]).decode().splitlines()
    assert lines[0] == "[0, 1, 2]", lines
    assert lines[1].startswith("True"), lines
    assert "SigBlk:\\t0000000000000000" in lines[2]
    grep = cluster.run({"command": "grep SigIgn /proc/self/status"})
    ignored = int(cluster.output(grep["job_id"]).split()[1], 16)
    assert ignored & ~(0b11 << 31) == 0  # glibc's posix_spawn leaves its own signals, 32 and 33, ignored


@pytest.mark.skipif(os.geteuid() != 0, reason="own uids need root")
def test_as_root_each_task_has_a_uid_of_its_own_and_sees_no_other_jobs_directory(cluster: Cluster) -> None:
    first = cluster.post({"command": "sh -c 'id -u; echo secret > mine; sleep 60'"})
    second = cluster.run({"command": "id -u"})
    uids = {int(cluster.output(second["job_id"])), 0}
    cluster.until(first["job_id"], "running")
    with cluster.client() as client:
        data = os.path.dirname(
            os.path.dirname(
                os.path.dirname(client.get(f"/v1/jobs/{first['job_id']}").json()["output"]["path"])
            )
        )
    look = cluster.run(
        {"command": f"sh -c 'find {data} / -name mine -xdev 2>/dev/null; ls -A {data} 2>/dev/null | wc -l'"}
    )
    assert cluster.output(look["job_id"]).strip() in (b"0", b""), cluster.output(look["job_id"])
    cluster.stop_job(first["job_id"])
    uids.add(int(cluster.output(first["job_id"])))
    assert len(uids) == 3


def test_the_job_document_has_every_field_of_the_contract(cluster: Cluster) -> None:
    job = cluster.run(
        {"command": "sh -c 'echo out; echo err >&2; exit 3'", "name": "n", "labels": {"a": "b"}}
    )
    assert (job["state"], job["reason"], job["exit_code"], job["signal"]) == ("failed", "exited", 3, None)
    assert (job["done"], job["error"], job["name"], job["labels"]) == (True, True, "n", {"a": "b"})
    assert job["attempt"] == 1 and job["queue_reason"] is None
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    assert job["spec"]["network"] == "host" and job["spec"]["output"]["max_bytes"] == 1 << 30
    assert set(job["limits"]) == {"requested", "effective", "enforced"}
    assert set(job["usage"]) == {
        "cpu_seconds",
        "memory_peak_bytes",
        "io_read_bytes",
        "io_write_bytes",
        "pids_peak",
        "cpu_throttled_seconds",
        "oom_kills",
        *(f"{what}_pressure_{who}_seconds" for what in ("cpu", "memory", "io") for who in ("some", "full")),
    }
    assert job["output"]["bytes"] == 8 and len(job["output"]["sha256"]) == 64 and job["output"]["available"]
    assert job["output"]["dropped_bytes"] == 0 and job["output"]["path"] and job["output"]["log_path"]
    (task,) = job["tasks"]
    assert (task["rank"], task["worker_id"], task["state"], task["reason"], task["exit_code"]) == (
        0,
        job["worker_id"],
        "failed",
        "exited",
        3,
    )


def test_a_running_job_tells_how_much_it_has_written_so_far(cluster: Cluster) -> None:
    job = cluster.post({"command": "sh -c 'echo out; echo error >&2; exec sleep 600'"})
    eventually(lambda: len(cluster.output(job["job_id"])) == 10, what="the output")
    path = f"/v1/jobs/{job['job_id']}"
    with cluster.client() as client:
        eventually(lambda: client.get(path).json()["output"]["bytes"] == 10, what="its size in the job")
        shown = client.get(path).json()
        assert (shown["state"], shown["output"]["sha256"], shown["output"]["available"]) == (
            "running",
            None,
            True,
        )
        assert shown["tasks"][0]["output"] == shown["output"]
    cluster.stop_job(job["job_id"])


def test_jobs_without_a_worker_id_spread_over_the_least_loaded(cluster: Cluster) -> None:
    jobs = [cluster.post({"command": "sleep 60"}) for _ in range(4)]
    try:
        placed = [cluster.until(j["job_id"], "running")["worker_id"] for j in jobs]
        assert sorted(placed.count(w) for w in set(placed)) == [2, 2]
    finally:
        for job in jobs:
            cluster.stop_job(job["job_id"], grace_seconds=1)


def test_the_list_goes_newest_first_by_cursor_and_filters(cluster: Cluster) -> None:
    mark = uuid.uuid4().hex
    ids = [cluster.run({"command": "true", "labels": {"mark": mark}})["job_id"] for _ in range(5)]
    seen: list[str] = []
    with cluster.client() as client:
        cursor = None
        while True:
            params = {"label": f"mark={mark}", "limit": "2", **({"cursor": cursor} if cursor else {})}
            page = client.get("/v1/jobs", params=params).json()
            seen += [j["job_id"] for j in page["jobs"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
    assert seen == ids[::-1]


def test_a_key_posted_again_gives_the_same_job_and_another_body_is_refused(cluster: Cluster) -> None:
    key = str(uuid.uuid4())
    with cluster.client() as client:
        first = client.post("/v1/jobs", json={"command": "true"}, headers={"Idempotency-Key": key})
        again = client.post("/v1/jobs", content=b'{ "command" : "true" }', headers={"Idempotency-Key": key})
        other = client.post("/v1/jobs", json={"command": "false"}, headers={"Idempotency-Key": key})
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 422)
    assert first.json()["job_id"] == again.json()["job_id"]


def test_five_hundred_short_jobs_tell_their_exit_codes_and_leave_nothing(own_cluster: Cluster) -> None:
    worker = own_cluster.workers[0]
    data = own_cluster.directory / worker.name / "data"
    own_cluster.run({"command": "true"})

    def held() -> list[int]:
        """How many descriptors each process of the worker holds, the launcher's first."""
        tree = [worker.pid, *descendants(worker.pid)]
        return [len(list(Path(f"/proc/{p}/fd").iterdir())) for p in tree]

    def claims() -> list[Path]:
        return list((data / "claims").iterdir())

    eventually(lambda: not claims(), what="no claim")
    before = held()
    with own_cluster.client() as client, ThreadPoolExecutor(16) as pool:

        def one(code: int) -> tuple[int, dict[str, object]]:
            answer = client.post(
                "/v1/jobs", params={"wait": 60}, json={"command": ["sh", "-c", f"exit {code}"]}
            )
            return code, answer.json()

        for code, job in pool.map(one, [n % 256 for n in range(500)]):
            assert (job["exit_code"], job["reason"]) == (code, "exited"), job
    eventually(lambda: not claims(), what="no claim left")
    # Supervisors made for the crowd go when they have been idle for a while.
    eventually(lambda: len(descendants(worker.pid)) < len(before), within=60, what="no process left")
    eventually(lambda: sum(held()) <= sum(before) + 8, what=f"about {before} descriptors")
    work = list((data / "jobs").glob("*/*/work/*"))
    assert work == []


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_without_network_a_job_has_only_its_own_loopback(cluster: Cluster) -> None:
    job = cluster.run({"command": "cat /proc/net/dev", "network": "none"})
    devices = [line.split(":")[0].strip() for line in cluster.output(job["job_id"]).decode().splitlines()[2:]]
    assert devices == ["lo"]
    port = str(cluster.grpc)
    tried = cluster.run({"command": "bash -c", "args": [f": < /dev/tcp/127.0.0.1/{port}"], "network": "none"})
    assert (tried["state"], tried["exit_code"]) == ("failed", 1)
    assert cluster.run({"command": "bash -c", "args": [f": < /dev/tcp/127.0.0.1/{port}"]})["exit_code"] == 0


def test_limits_are_kept_as_asked_and_whether_they_are_enforced_is_said_for_each(cluster: Cluster) -> None:
    job = cluster.run({"command": "true", "limits": {"memory": "64MiB", "io": {"read_bps": 1000}}})
    assert job["state"] == "succeeded", job
    assert job["limits"]["requested"]["memory"] == 64 << 20
    assert job["limits"]["requested"]["io"]["read_bps"] == 1000
    for name, found in job["limits"]["enforced"].items():
        assert found["ok"] or found["why"], (name, found)
        if not found["ok"]:
            assert job["limits"]["effective"][name] in (None, dict.fromkeys(job["limits"]["requested"]["io"]))
