"""A real launcher with real supervisors, and a stub for its server."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jobcluster_worker.launcher import wire

from tests.unit.worker.launcher.connection import Connection, Supervisor
from tests.unit.worker.launcher.process_tree import SECONDS, alive, below, children, wait_until

PACKAGE = Path(wire.__file__).parents[1]
STUB = Path(__file__).parent / "stub_server.py"


@functools.cache
def python_for(user: int | None) -> str:
    """An interpreter which that user may execute: root's own often lies where nobody else may look."""
    if user is None:
        return sys.executable
    for candidate in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            asked = [candidate, "-I", "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
            if subprocess.run(asked, user=user, group=user, extra_groups=[], cwd="/").returncode == 0:
                return candidate
    pytest.skip("no Python 3.11 or newer that a plain user of this host may execute")


class Worker:
    """One launcher; closed with everything below it."""

    def __init__(self, directory: Path, user: int | None = None, **settings: Any) -> None:
        self.directory = directory
        self.state, self.data = directory / "state", directory / "data"
        self.templates = directory / "templates"
        self.starts_file = directory / "starts"
        behaviour = settings.pop("behaviour", "clean")
        self.bootstrap = {
            "server_argv": [python_for(user), "-I", str(self._for_user(STUB, user))],
            "state_directory": str(self.state),
            "data_directory": str(self.data),
            "template_directory": str(self.templates),
            "log_file": "",
            "hide": [str(self.state), str(self.data)],
            "limits_require": False,
            "grace_seconds": 2.0,
            "handover_seconds": 0.5,
            **settings,
        }
        self.templates.mkdir(exist_ok=True)
        self.errors = directory / "stderr"
        self.process = self._begin(behaviour, user)
        self.connections: list[Connection] = []

    def _begin(self, behaviour: str, user: int | None) -> subprocess.Popen[bytes]:
        launcher = self._for_user(PACKAGE, user) / "launcher"
        fd = os.memfd_create("bootstrap")
        os.write(fd, json.dumps(self.bootstrap).encode())
        environment = {
            "STARTS_FILE": str(self.starts_file),
            "BEHAVIOUR": behaviour,
            "SECRET": "of the worker",
        }
        with self.errors.open("ab") as errors:
            process = subprocess.Popen(
                [python_for(user), "-I", "-S", str(launcher), "--bootstrap-fd", str(fd)],
                cwd="/",
                pass_fds=[fd],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                user=user,
                group=user,
                extra_groups=[] if user is not None else None,
            )
        os.close(fd)
        return process

    def _for_user(self, path: Path, user: int | None) -> Path:
        """The same file or package where that user may read it (the clone may lie where nobody else looks)."""
        if user is None:
            return path
        copy = self.directory / path.name
        if path.is_dir():
            shutil.copytree(path, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, copy)
        return copy

    @property
    def server_starts(self) -> list[dict[str, Any]]:
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in self.starts_file.read_text().splitlines()]
        return []

    @property
    def run_directory(self) -> Path:
        first = wait_until(lambda: self.server_starts, f"a server; see {self.errors}")[0]
        argv = first["argv"]
        return Path(argv[argv.index("--run-directory") + 1])

    @property
    def incarnation(self) -> str:
        argv = wait_until(lambda: self.server_starts, "a server")[0]["argv"]
        return str(argv[argv.index("--incarnation") + 1])

    def connect(self) -> Connection:
        """To the launcher."""
        connection = Connection(str(self.run_directory / "launcher.sock"))
        self.connections.append(connection)
        return connection

    def supervisor(self, name: str = "s1") -> Supervisor:
        supervisor = Supervisor(str(self.run_directory / f"{name}.sock"))
        self.connections.append(supervisor)
        supervisor.hello()
        return supervisor

    def pids(self) -> list[int]:
        """Everything below the launcher."""
        return below(self.process.pid)

    def supervisor_pids(self) -> list[int]:
        server = {start["pid"] for start in self.server_starts}
        return [pid for pid in children(self.process.pid) if pid not in server]

    def claims(self) -> list[str]:
        return sorted(path.name for path in (self.data / "claims").iterdir())

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        left = self.pids()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        wait_until(lambda: not any(map(alive, left)), f"the end of all of {left}")
