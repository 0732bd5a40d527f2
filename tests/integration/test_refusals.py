"""Bad input gets a clear error that names the field, and the services live on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster import REPOSITORY, Cluster


@pytest.mark.parametrize(
    ("spec", "pointer"),
    [
        ({}, "/command"),
        ({"command": ""}, "/command"),
        ({"command": []}, "/command"),
        ({"command": 7}, "/command"),
        ({"command": "unbalanced 'quote"}, "/command"),
        ({"command": "nul\0byte"}, "/command"),
        ({"command": "bash", "path": "../../etc/passwd"}, "/path"),
        ({"command": "bash", "path": "a\0b"}, "/path"),
        ({"command": "true", "colour": "red"}, "/colour"),
        ({"command": "true", "timeout_seconds": "soon"}, "/timeout_seconds"),
        ({"command": "true", "timeout_seconds": -1}, "/timeout_seconds"),
        ({"command": "true", "env": {"A": 1}}, "/env/A"),
        ({"command": "true", "args": ["x" * (1 << 20)]}, "/args"),
        ({"command": "true", "files": {"../up": "x"}}, "/files/..~1up"),
        ({"command": "true", "output": {"on_limit": "explode"}}, "/output/on_limit"),
        ({"command": "true", "tasks": 2}, "/tasks"),
        ({"command": "true", "array": {"count": 3}}, "/array"),
        ({"command": "true", "ephemeral": True}, "/ephemeral"),
        ({"command": "true", "retry": {"max": 1, "on": ["worker_lost"]}}, "/retry"),
        ({"command": "true", "selector": {"a": "b"}}, "/selector"),
    ],
)
def test_a_bad_spec_is_422_and_every_fault_is_named(
    cluster: Cluster, spec: dict[str, Any], pointer: str
) -> None:
    with cluster.client() as client:
        answer = client.post("/v1/jobs", json=spec)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert {"type", "title", "status", "detail", "errors", "request_id"} <= problem.keys()
    pointers = [e["pointer"] for e in problem["errors"]]
    assert any(p == pointer or p.startswith(pointer + "/") for p in pointers), problem


def test_all_faults_of_one_spec_are_listed(cluster: Cluster) -> None:
    with cluster.client() as client:
        problem = client.post("/v1/jobs", json={"command": "", "colour": 1, "timeout_seconds": "x"}).json()
    assert {e["pointer"] for e in problem["errors"]} == {"/command", "/colour", "/timeout_seconds"}


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b"\xff", 400), (b"[" * 100_000, 400), (b"[]", 422), (b"x" * (5 << 20), 413)],
)
def test_a_bad_body_is_refused_as_what_it_is(cluster: Cluster, content: bytes, status: int) -> None:
    with cluster.client() as client:
        answer = client.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json()["status"] == status


def test_unknown_workers_jobs_and_routes_are_404_in_any_form(cluster: Cluster) -> None:
    with cluster.client() as client:
        assert client.post("/v1/jobs", json={"command": "true", "worker_id": "nobody"}).status_code == 404
        for path in (
            "/v1/jobs/none",
            "/v1/jobs/%00",
            "/v1/workers/none",
            "/v1/jobs/none/output",
            "/nothing",
            "/",
        ):
            answer = client.get(path)
            assert answer.status_code == 404, (path, answer.text)
            assert answer.json()["request_id"]
        assert client.post("/v1/jobs/none/stop").status_code == 404
        assert client.patch("/v1/jobs", json={}).status_code == 405
    assert cluster.run({"command": "true"})["state"] == "succeeded"


@pytest.mark.parametrize("module", ["jobcluster_controller", "jobcluster_worker"])
@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[grpc_server]\naddr = 7\n", ("addr",)),
        ("[nonsense]\nx = 1\n", ("nonsense",)),
        ("not toml", ()),
        (None, ("does-not-exist",)),
    ],
)
def test_a_configuration_fault_is_one_line_that_names_file_and_key(
    tmp_path: Path, module: str, text: str | None, names: tuple[str, ...]
) -> None:
    config = tmp_path / ("settings.toml" if text is not None else "does-not-exist.toml")
    if text is not None:
        config.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", module, "--config", config],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
    )
    assert done.returncode != 0
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert str(config) in lines[0]
    for name in names:
        assert name in lines[0]
