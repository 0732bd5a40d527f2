"""The worker's entry: settings are checked, then this process becomes the launcher, which needs no library."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobcluster_common.settings import SettingsError, fail_with_one_line, load

from jobcluster_worker.limits import from_amounts
from jobcluster_worker.settings import ELSEWHERE, WorkerSettings

LAUNCHER = Path(__file__).resolve().parent / "launcher"
TASKS_PER_SUPERVISOR = 32


def config_path(arguments: Sequence[str], environ: Mapping[str, str]) -> Path | None:
    """``--config FILE``, else JOBCLUSTER_CONFIG, else none."""
    parser = argparse.ArgumentParser(
        prog="jobcluster-worker", description="Runs jobs for a jobcluster controller."
    )
    parser.add_argument("--config", type=Path, help="settings file (TOML); or JOBCLUSTER_CONFIG")
    given: Path | None = parser.parse_args(arguments).config
    if given is None and environ.get("JOBCLUSTER_CONFIG"):
        given = Path(environ["JOBCLUSTER_CONFIG"])
    return None if given is None else given.absolute()


def prepare(settings: WorkerSettings, config: Path | None) -> None:
    """Makes the worker's directories and looks whether it will be able to prove who it is.

    :raises SettingsError: if not
    """
    where = config or "settings"
    state, data = settings.worker.state_directory, settings.data_directory
    # Jobs pass through to their own directories, where no mount namespace is to be had; modes set further down
    # and those of the secret files keep them out of the rest.
    state_mode = 0o711 if data.is_relative_to(state) else 0o700
    for key, path, mode in (
        ("worker.state_directory", state, state_mode),
        ("jobs.data_directory", data, 0o711),
    ):
        try:
            path.mkdir(mode=mode, parents=True, exist_ok=True)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(13, os.strerror(13))
        except OSError as error:
            raise SettingsError(
                f"{where}: {key}: {path} cannot be used: {error.strerror}; name a directory this user can write"
            ) from None
    _check_address(settings.grpc_server.addr, where)
    server = settings.grpc_server
    enrols = server.use_tls and server.crt_file is None
    enrolled = (settings.worker.state_directory / "worker.crt").is_file()
    if enrols and settings.auth.join is None and not enrolled:
        raise SettingsError(
            f"{where}: auth.join: missing; name the file with the join token, "
            "or give grpc_server.crt_file and key_file"
        )


def _check_address(addr: str, where: Path | str) -> None:
    """A taken port is said here: whatever binds it later has no terminal to say it on."""
    host, _, port = addr.rpartition(":")
    host = host.strip("[]")
    try:
        # As grpc binds: an address in TIME_WAIT may be taken again, one where somebody listens may not.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, int(port)), family=family).close()
    except OSError as error:
        raise SettingsError(
            f"{where}: grpc_server.addr: {addr} cannot be bound: {error.strerror or error}; "
            "end who has it, or name another"
        ) from None


def bootstrap(settings: WorkerSettings, config: Path | None) -> dict[str, object]:
    """All that the launcher and its supervisors need."""
    server = [sys.executable, "-I", "-m", "jobcluster_worker.server"]
    if config is not None:
        server += ["--config", str(config)]
    secret = [settings.worker.state_directory, settings.data_directory]
    secret += [p for p in (config, settings.auth.join, settings.grpc_server.key_file) if p is not None]
    return {
        "server_argv": server,
        "settings_file": _text(config),
        "state_directory": str(settings.worker.state_directory),
        "data_directory": str(settings.data_directory),
        "template_directory": _text(settings.jobs.template_directory),
        "log_file": _text(settings.jobs.log_file),
        "log_format": settings.log.format,
        "log_level": settings.log.level,
        "hide": [str(path) for path in secret],
        "grace_seconds": settings.shutdown.grace_seconds,
        "drain_seconds": settings.shutdown.drain_seconds if settings.shutdown.on_sigterm == "drain" else 0.0,
        "handover_seconds": settings.shutdown.handover_seconds,
        "limits_require": settings.limits.require,
        "limits_worker": from_amounts(settings.limits.worker.amounts()),
        "output_max_bytes": settings.jobs.output_max_bytes,
        "tasks_per_supervisor": TASKS_PER_SUPERVISOR,
    }


@fail_with_one_line
def main() -> int:
    """Never returns, save for a fault in the settings: this process goes on as the launcher, under the same pid."""
    config = config_path(sys.argv[1:], os.environ)
    settings = load(WorkerSettings, config, os.environ, ELSEWHERE)
    prepare(settings, config)
    fd = os.memfd_create("jobcluster-bootstrap")
    os.write(fd, json.dumps(bootstrap(settings, config)).encode())
    os.set_inheritable(fd, True)
    # -I and -S: nothing but the standard library, and nothing of the caller's environment, is in the launcher.
    os.execv(sys.executable, [sys.executable, "-I", "-S", str(LAUNCHER), "--bootstrap-fd", str(fd)])


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
