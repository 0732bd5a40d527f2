from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jobcluster_common.settings import SettingsError, load
from jobcluster_worker import app
from jobcluster_worker.settings import WorkerSettings


@pytest.fixture
def base(tmp_path: Path) -> dict[str, dict[str, Any]]:
    for name in ("ca.crt", "join.token"):
        (tmp_path / name).write_text("x")
    return {
        "grpc_server": {"addr": "127.0.0.1:0", "ca_file": "ca.crt"},
        "auth": {"join": "join.token"},
        "worker": {"state_directory": "state"},
        "limits": {"require": False},
    }


def written(directory: Path, blocks: dict[str, dict[str, Any]]) -> Path:
    lines = []
    for name, block in blocks.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in block.items()]
    path = directory / "worker.toml"
    path.write_text("\n".join(lines))
    return path


def read(directory: Path, blocks: dict[str, dict[str, Any]], **environ: str) -> WorkerSettings:
    return load(WorkerSettings, written(directory, blocks), environ)


def test_relative_names_are_relative_to_the_file_and_what_is_absent_has_its_default(
    tmp_path: Path, base: dict[str, dict[str, Any]]
) -> None:
    settings = read(tmp_path, base)
    assert settings.worker.state_directory == tmp_path / "state"
    assert settings.data_directory == tmp_path / "state" / "data"
    assert settings.auth.join == tmp_path / "join.token"
    assert (settings.jobs.output_max_bytes, settings.shutdown.grace_seconds) == (None, 10.0)
    assert settings.controller.enroll_url == "https://127.0.0.1:8443"


def test_each_key_may_come_from_the_environment_by_its_double_underscore_name_only(
    tmp_path: Path, base: dict[str, dict[str, Any]]
) -> None:
    settings = read(
        tmp_path,
        base,
        JOBCLUSTER_LIMITS__REQUIRE="true",
        JOBCLUSTER_LIMITS__MAX__MEMORY="1GiB",
        JOBCLUSTER_URL="https://elsewhere",
    )
    assert settings.limits.require
    assert settings.limits.max.amounts() == {"memory": 1 << 30}


def test_limits_are_told_by_their_names_without_what_is_not_limited(
    tmp_path: Path, base: dict[str, dict[str, Any]]
) -> None:
    base["limits.worker"] = {"cpu": 1.5, "memory": "256MiB", "pids": 64}
    base["limits.default.io"] = {"read_bps": "1M"}
    settings = read(tmp_path, base)
    assert settings.limits.worker.amounts() == {"cpu": 1.5, "memory": 256 << 20, "pids": 64}
    assert settings.limits.default.amounts() == {"io/read_bps": 1 << 20}
    assert settings.limits.max.amounts() == {}


def test_a_default_above_the_most_is_refused_by_where_it_comes_from(
    tmp_path: Path, base: dict[str, dict[str, Any]]
) -> None:
    base["limits.default"], base["limits.max"] = {"memory": "128MiB"}, {"memory": "64MiB"}
    says = r"limits\.max: memory = 64MiB is less than limits\.default\.memory = 128MiB; raise it, or lower the default"
    with pytest.raises(SettingsError, match=rf"^{tmp_path}/worker\.toml: {says}$"):
        read(tmp_path, base)
    assert read(tmp_path, base, JOBCLUSTER_LIMITS__MAX__MEMORY="128MiB").limits.max.memory == 128 << 20
    with pytest.raises(SettingsError, match=r"^JOBCLUSTER_LIMITS__MAX__MEMORY: limits\.max"):
        read(tmp_path, base, JOBCLUSTER_LIMITS__MAX__MEMORY="32MiB", JOBCLUSTER_LIMITS__REQUIRE="true")


@pytest.mark.parametrize(
    ("block", "key", "value", "says"),
    [
        ("grpc_server", "addr", 7, "addr"),
        ("grpc_server", "addr", "nowhere", "host:port"),
        ("grpc_server", "ca_file", "missing.crt", "no such file"),
        ("grpc_server", "use_tls", "yes", "use_tls"),
        ("controller", "enroll_url", "http://plain:1", "enroll_url"),
        ("auth", "join", "missing.token", "no such file"),
        ("jobs", "template_directory", "missing", "no such directory"),
        ("jobs", "output_max_bytes", "many", "not a size"),
        ("jobs", "max_tasks", 0, "max_tasks"),
        ("shutdown", "on_sigterm", "flee", "on_sigterm"),
        ("shutdown", "grace_seconds", -1, "grace_seconds"),
        ("limits", "requires", True, "unknown key"),
        ("limits.worker", "memory", 0, "limits.worker.memory: 0 is too little to work with"),
        ("limits.max", "cpu", 0.001, "at least 0.01 is needed"),
        ("limits.max.io", "write_bps", 0, "limits.max.io.write_bps"),
        ("nonsense", "x", 1, "nonsense"),
        ("lease", "stop_on_partition_seconds", 5, "not built yet"),
        ("worker", "state_directory", 5, "state_directory"),
    ],
)
def test_a_fault_is_one_line_with_file_key_and_remedy(
    tmp_path: Path, base: dict[str, dict[str, Any]], block: str, key: str, value: object, says: str
) -> None:
    base.setdefault(block, {})[key] = value
    with pytest.raises(SettingsError) as raised:
        read(tmp_path, base)
    text = str(raised.value)
    assert "\n" not in text
    assert str(tmp_path / "worker.toml") in text
    assert says in text


def test_plain_text_is_for_loopback_only(tmp_path: Path, base: dict[str, dict[str, Any]]) -> None:
    base["grpc_server"] = {"addr": "0.0.0.0:0", "use_tls": False}
    with pytest.raises(SettingsError, match="loopback"):
        read(tmp_path, base)
    base["grpc_server"]["addr"] = "127.0.0.1:0"
    assert not read(tmp_path, base).grpc_server.use_tls


def test_the_launcher_is_told_all_it_needs_and_what_jobs_must_not_see(
    tmp_path: Path, base: dict[str, dict[str, Any]]
) -> None:
    (tmp_path / "templates").mkdir()
    base["jobs"] = {"template_directory": "templates", "log_file": "worker.log"}
    base["shutdown"] = {"on_sigterm": "stop", "drain_seconds": 7}
    settings, config = read(tmp_path, base), tmp_path / "worker.toml"
    told = app.bootstrap(settings, config)
    assert told["server_argv"] == [
        sys.executable,
        "-I",
        "-m",
        "jobcluster_worker.server",
        "--config",
        str(config),
    ]
    assert told["settings_file"] == str(config)
    assert told["hide"] == [
        str(tmp_path / name) for name in ("state", "state/data", "worker.toml", "join.token")
    ]
    assert told["drain_seconds"] == 0.0  # on_sigterm = "stop" does not drain
    assert told["template_directory"] == str(tmp_path / "templates")
    assert told["log_file"] == str(tmp_path / "worker.log")


def test_a_worker_that_could_never_prove_who_it_is_does_not_start(
    tmp_path: Path, base: dict[str, dict[str, Any]]
) -> None:
    del base["auth"]
    settings, config = read(tmp_path, base), tmp_path / "worker.toml"
    with pytest.raises(SettingsError, match=r"auth\.join: missing"):
        app.prepare(settings, config)
    (tmp_path / "state" / "worker.crt").write_text("enrolled before")
    app.prepare(settings, config)


@pytest.mark.parametrize(("data", "mode"), [(None, 0o711), ("elsewhere", 0o700)])
def test_the_state_directory_is_closed_to_tasks_unless_their_own_directories_are_below_it(
    tmp_path: Path, base: dict[str, dict[str, Any]], data: str | None, mode: int
) -> None:
    base["jobs"] = {} if data is None else {"data_directory": data}
    settings = read(tmp_path, base)
    app.prepare(settings, tmp_path / "worker.toml")
    assert (tmp_path / "state").stat().st_mode & 0o777 == mode
    assert settings.data_directory.stat().st_mode & 0o777 == 0o711


def test_a_directory_that_is_a_file_and_a_port_that_is_taken_are_told_before_anything_runs(
    tmp_path: Path, base: dict[str, dict[str, Any]]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        base["grpc_server"]["addr"] = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SettingsError, match=r"grpc_server\.addr.*cannot be bound"):
            app.prepare(read(tmp_path, base), None)
    base["worker"]["state_directory"] = "join.token/below"
    with pytest.raises(SettingsError, match=r"worker\.state_directory.*cannot be used"):
        app.prepare(read(tmp_path, base), None)


def test_the_command_ends_with_one_line_and_code_2_on_a_fault(tmp_path: Path) -> None:
    config = tmp_path / "none.toml"
    env = {**os.environ, "JOBCLUSTER_CONFIG": str(config)}
    done = subprocess.run(
        [sys.executable, "-m", "jobcluster_worker"], capture_output=True, text=True, env=env, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(config) in done.stderr
