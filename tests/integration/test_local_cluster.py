"""`make start`, `make stop` and `make demo`, in directories and on ports of the tests' own."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster import REPOSITORY, marked
from tools.host import free_port
from tools.local_cluster import Layout, LocalCluster

HELLO = {"command": "bash", "path": "hello.sh", "args": ["again"]}


def tool(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m tools.…`` as make does."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


class Background:
    """One cluster of `make start`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        folders = {name: directory / name for name in ("certs", "run", "state", "settings")}
        self.layout = Layout(**folders, http_port=free_port(), grpc_port=free_port())
        self.cluster = LocalCluster(self.layout, 1)

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        ports = {
            "JOBCLUSTER_HTTP_PORT": str(self.layout.http_port),
            "JOBCLUSTER_GRPC_PORT": str(self.layout.grpc_port),
        }
        return tool("tools.cluster", *arguments, "--directory", str(self.directory), **ports)

    def start(self, workers: int = 1) -> None:
        self.cluster = LocalCluster(self.layout, workers)
        done = self.call("start", "--workers", str(workers))
        assert done.returncode == 0, done.stderr

    def stop(self) -> None:
        done = self.call("stop")
        assert done.returncode == 0, done.stderr


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Background]:
    made = Background(tmp_path)
    yield made
    made.stop()
    assert marked(str(tmp_path)) == {}


def test_after_stop_and_start_jobs_tokens_and_worker_ids_are_as_before(background: Background) -> None:
    background.start(2)
    cluster, env = background.cluster, background.directory / "env"
    job = cluster.api().post("/v1/jobs?wait=30", HELLO)
    before = cluster.worker_ids(), env.read_text()
    pids = cluster.running()
    assert sorted(pids) == ["controller", "worker-1", "worker-2"]
    background.stop()
    assert cluster.running() == {}
    assert list(background.layout.run.glob("*.pid")) == []
    background.start(2)
    assert (cluster.worker_ids(), env.read_text()) == before
    output = cluster.api().call("GET", f"/v1/jobs/{job['job_id']}/output")
    assert output.startswith(b"Hello again, from bash.")


def test_what_is_left_running_holds_no_descriptor_of_its_caller(background: Background) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    background.start()  # captured: it would not return while somebody held its stdout or stderr
    os.close(writer)
    # The end of the pipe is seen only when nobody holds its other side.
    assert select.select([reader], [], [], 0)[0]
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_second_start_and_taken_ports_are_refused_and_overwrite_nothing(background: Background) -> None:
    def written() -> dict[Path, int]:
        files = [*background.directory.rglob("*.toml"), background.directory / "env"]
        return {file: file.stat().st_mtime_ns for file in files}

    background.start()
    before = written()
    assert "runs already" in background.call("start").stderr
    background.stop()
    for port in (background.layout.http_port, background.layout.grpc_port):
        with socket.create_server(("127.0.0.1", port)):
            refused = background.call("start")
        assert refused.returncode == 1
        assert f"port {port} is taken" in refused.stderr and "set JOBCLUSTER_" in refused.stderr
    for wrong in ("x", "0", "65536", "-1"):
        refused = tool("tools.cluster", "start", JOBCLUSTER_GRPC_PORT=wrong)
        assert refused.returncode == 1 and refused.stderr.startswith("start: JOBCLUSTER_GRPC_PORT is")
    assert written() == before
    assert list(background.layout.run.glob("*.pid")) == []


def test_a_start_that_fails_shows_the_logs_and_leaves_nothing_running(background: Background) -> None:
    (background.directory / "state").mkdir()
    (background.directory / "state" / "controller.db").mkdir()  # no file: the store cannot be opened
    background.layout.run.mkdir()
    for name in ("controller", "worker-7"):
        background.layout.log_file(name).write_text("of an earlier start\n")
    failed = background.call("start")
    assert failed.returncode == 1
    assert "controller ended with" in failed.stderr and "controller.log" in failed.stderr
    assert "store.path" in failed.stderr.splitlines()[-1]  # what it was comes last
    assert "earlier" not in failed.stderr
    assert background.cluster.running() == {}


def test_a_pid_that_another_program_has_now_is_not_signalled(background: Background) -> None:
    background.layout.make_directories()
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    background.layout.pid_file("worker-1").write_text(f"{other.pid}\n")
    assert background.call("stop").stdout == "stop: nothing runs\n"
    assert other.poll() is None
    other.communicate(b"\n", timeout=30)


def test_the_demo_ends_0_twice_and_leaves_neither_process_nor_directory(tmp_path: Path) -> None:
    for _ in range(2):
        done = tool("tools.demo", TMPDIR=str(tmp_path))
        assert done.returncode == 0, done.stdout + done.stderr
        for said in (
            "succeeded, reason exited",
            "failed, reason exited, exit code 3",
            "stopped, reason stopped",
        ):
            assert said in done.stdout
        assert list(tmp_path.iterdir()) == []
        assert marked(str(tmp_path)) == {}


def test_a_demo_that_fails_shows_the_logs_and_leaves_nothing(tmp_path: Path) -> None:
    done = tool("tools.demo", TMPDIR=str(tmp_path), JOBCLUSTER_JOBS__QUEUE_MAX="many")
    assert done.returncode == 1
    assert "controller.log" in done.stderr and "JOBCLUSTER_JOBS__QUEUE_MAX" in done.stderr
    assert list(tmp_path.iterdir()) == []
