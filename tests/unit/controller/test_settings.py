"""Every fault of the controller's settings is one line that names file, key and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobcluster_common.settings import SettingsError, load
from jobcluster_controller.settings import ELSEWHERE, ControllerSettings

LINES = {
    "grpc_server": ['crt_file = "a"', 'key_file = "a"', 'ca_file = "a"'],
    "auth": ['admin = "a"'],
    "enrollment": ['ca_crt_file = "a"', 'ca_key_file = "a"'],
    "store": ['path = "state/c.db"'],
}


def written(directory: Path, **changes: list[str]) -> Path:
    (directory / "a").write_text("x")
    blocks = LINES | changes
    file = directory / "controller.toml"
    file.write_text("".join(f"[{name}]\n" + "\n".join(lines) + "\n" for name, lines in blocks.items()))
    return file


def test_the_least_that_is_needed(tmp_path: Path) -> None:
    settings = load(ControllerSettings, written(tmp_path), {})
    assert settings.grpc_server.addr == "127.0.0.1:7443" and settings.http_server.addr == "127.0.0.1:8443"
    assert settings.store.path == tmp_path / "state" / "c.db"
    assert (settings.lease.heartbeat_seconds, settings.lease.lost_seconds) == (2.0, 60.0)
    assert settings.enrollment.certificate_hours == 720


def test_a_variable_wins_over_the_file(tmp_path: Path) -> None:
    environ = {"JOBCLUSTER_JOBS__QUEUE_MAX": "5", "JOBCLUSTER_HTTP_PORT": "1", "JOBCLUSTER_URL": "x"}
    assert load(ControllerSettings, written(tmp_path), environ).jobs.queue_max == 5


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"grpc_server": []}, "grpc_server"),
        ({"grpc_server": ["use_tls = false", 'addr = "0.0.0.0:1"']}, "grpc_server"),
        ({"grpc_server": ["use_tls = 1"]}, "grpc_server.use_tls"),
        ({"http_server": ['names = ["a.example,b.example"]']}, "http_server.names"),
        ({"http_server": ['addr = "nowhere"']}, "http_server.addr"),
        ({"http_server": ['crt_file = "a"']}, "http_server"),
        ({"http_server": ['crt_file = "b"', 'key_file = "a"']}, "http_server.crt_file"),
        ({"auth": ['viewer = "a"']}, "auth.admin"),
        ({"auth": ['admin = "b"']}, "auth.admin"),
        ({"jobs": ["queue_max = -1"]}, "jobs.queue_max"),
        ({"jobs": ["queue = 1"]}, "jobs.queue"),
        ({"lease": ["lost_seconds = 5"]}, "lease"),
        ({"nonsense": ["x = 1"]}, "nonsense"),
        ({"limits": ["require = true"]}, "limits.require"),
        ({"limits.max": ["colour = 1"]}, "limits.max.colour"),
        ({"limits.max": ['memory = "4KiB"']}, "limits.max.memory: 4KiB is too little to work with"),
        (
            {"limits.default": ["cpu = 2.5"], "limits.max": ["cpu = 2"]},
            "limits.max: cpu = 2 is less than limits.default.cpu = 2.5; raise it, or lower the default",
        ),
        (
            {"limits.default.io": ['read_bps = "2M"'], "limits.max.io": ["read_bps = 9"]},
            "limits.max: io.read_bps = 9 is",
        ),
    ],
)
def test_a_fault_is_one_line(tmp_path: Path, changes: dict[str, list[str]], key: str) -> None:
    file = written(tmp_path, **changes)
    with pytest.raises(SettingsError) as found:
        load(ControllerSettings, file, {})
    line = str(found.value)
    assert "\n" not in line and line.startswith(f"{file}: {key}"), line


def test_the_limits_of_the_whole_cluster(tmp_path: Path) -> None:
    lines = {"limits.default": ['memory = "64MiB"'], "limits.max": ["memory = 67108864", "pids = 9"]}
    environ = {"JOBCLUSTER_LIMITS__REQUIRE": "false"}  # a worker's
    limits = load(ControllerSettings, written(tmp_path, **lines), environ, ELSEWHERE).limits
    assert limits.default.amounts() == {"memory": 64 << 20}
    assert limits.max.amounts() == {"memory": 64 << 20, "pids": 9}


def test_plain_text_is_for_loopback(tmp_path: Path) -> None:
    file = written(tmp_path, grpc_server=["use_tls = false"])
    assert not load(ControllerSettings, file, {}).grpc_server.use_tls
