"""The controller as a process: one line for what is wrong, and a stop in order."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jobcluster_common.certificates import make_ca, make_leaf, write_private
from jobcluster_common.identity import CONTROLLER

from tools.host import free_port

TOKEN = "the-token-of-an-admin"
COMMAND = [sys.executable, "-m", "jobcluster_controller"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    ca = make_ca()
    leaf = make_leaf(ca, CONTROLLER)
    for name, content in {
        "ca.crt": ca.crt_pem,
        "ca.key": ca.key_pem,
        "controller.crt": leaf.crt_pem,
        "controller.key": leaf.key_pem,
        "admin.token": TOKEN.encode(),
    }.items():
        write_private(tmp_path / name, content)
    file = tmp_path / "controller.toml"
    file.write_text(f"""
[grpc_server]
addr = "127.0.0.1:{free_port()}"
crt_file = "controller.crt"
key_file = "controller.key"
ca_file = "ca.crt"
[http_server]
addr = "127.0.0.1:{free_port()}"
names = ["a.example"]
[auth]
admin = "admin.token"
[enrollment]
ca_crt_file = "ca.crt"
ca_key_file = "ca.key"
[store]
path = "state/controller.db"
""")
    return file


@contextmanager
def started(config: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The process, ready, and its HTTPS port."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("JOBCLUSTER_")}
    with (config.parent / "log").open("wb") as log:
        process = subprocess.Popen([*COMMAND, "--config", str(config)], stderr=log, env=environ)
    try:
        yield process, ready(config.parent / "log", process)
    finally:
        process.kill()
        process.wait(10)


def ready(log: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if '"controller_ready"' in line:
                return int(json.loads(line)["http_port"])
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def get(config: Path, port: int, path: str) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=str(config.parent / "ca.crt"))
    request = urllib.request.Request(
        f"https://localhost:{port}{path}", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:
        return answer.status, answer.read()


def failed(config: Path) -> str:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("JOBCLUSTER_")}
    command = [*COMMAND, "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 2, done.stderr
    # What comes before, if anything, are events of the log.
    *events, line = done.stderr.splitlines()
    assert all(json.loads(event) for event in events)
    return line


def test_it_serves_tls_1_3_and_stops_cleanly_with_a_wait_under_way(config: Path) -> None:
    with started(config) as (process, port):
        assert get(config, port, "/readyz")[0] == 200
        assert json.loads(get(config, port, "/v1/workers")[1]) == {"workers": []}
        context = ssl.create_default_context(cafile=str(config.parent / "ca.crt"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(("127.0.0.1", port)) as bare, pytest.raises(ssl.SSLError):
            context.wrap_socket(bare, server_hostname="localhost")
        answers: list[int] = []
        waiting = threading.Thread(target=lambda: answers.append(start(config, port, wait=60)))
        waiting.start()
        deadline = time.monotonic() + 10
        while not has_jobs(config, port):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        waiting.join(10)
    assert answers == [503]
    log = (config.parent / "log").read_text()
    assert "controller_stopped" in log and "Traceback" not in log and TOKEN not in log


def start(config: Path, port: int, wait: int = 0) -> int:
    context = ssl.create_default_context(cafile=str(config.parent / "ca.crt"))
    request = urllib.request.Request(
        f"https://localhost:{port}/v1/jobs?wait={wait}",
        b'{"command":"true"}',
        {"Authorization": f"Bearer {TOKEN}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code)


def has_jobs(config: Path, port: int) -> bool:
    return len(json.loads(get(config, port, "/v1/jobs")[1])["jobs"]) > 0


def test_an_acknowledged_job_outlives_a_kill(config: Path) -> None:
    with started(config) as (process, port):
        assert start(config, port) == 201
        process.kill()
        process.wait(10)
    (config.parent / "log").unlink()
    with started(config) as (process, port):
        assert has_jobs(config, port)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("ca.key", b"nonsense", "enrollment.ca_crt_file"),
        ("admin.token", b"", "auth.admin"),
        ("controller.toml", b"[grpc_server]\naddr = 7\n", "grpc_server"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(config: Path, name: str, content: bytes, says: str) -> None:
    (config.parent / name).write_bytes(content)
    line = failed(config)
    assert says in line and str(config.parent) in line


def test_another_cas_key_is_refused(config: Path) -> None:
    (config.parent / "ca.key").write_bytes(make_ca().key_pem)
    assert "not the key of ca_crt_file" in failed(config)


@pytest.mark.parametrize("block", ["grpc_server", "http_server"])
def test_a_taken_port_is_one_line(config: Path, block: str) -> None:
    lines = config.read_text().split(f'[{block}]\naddr = "127.0.0.1:')
    port = int(lines[1].partition('"')[0])
    with socket.create_server(("127.0.0.1", port)):
        line = failed(config)
    assert f"{block}.addr" in line and "in use" in line


def test_a_store_that_is_not_ours_is_one_line(config: Path) -> None:
    (config.parent / "state").mkdir()
    (config.parent / "state" / "controller.db").write_bytes(b"not a database at all" * 100)
    line = failed(config)
    assert line.startswith(f"{config}: store.path: ") and "controller.db" in line


def test_a_place_where_no_store_can_be_is_one_line_with_the_remedy(config: Path) -> None:
    (config.parent / "state").write_text("a file where a folder must be")
    line = failed(config)
    assert line.startswith(f"{config}: store.path: ") and "name a file this user can write" in line


def test_without_a_settings_file_the_remedy_is_to_give_one() -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("JOBCLUSTER_")}
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--config" in done.stderr and "JOBCLUSTER_CONFIG" in done.stderr
