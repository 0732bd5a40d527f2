"""A controller and workers as plain processes on loopback: their settings, their start, their stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobcluster_common.certificates import identity_of

from tools import processes
from tools.api import Api, ApiError
from tools.host import HOST, ROOT, toml

TEMPLATES = ROOT / "examples" / "templates"
LAUNCHER = ROOT / "services" / "worker" / "jobcluster_worker" / "launcher"
GRACE_SECONDS = 10
HANDOVER_SECONDS = 5
# A worker ends within grace + handover + 5 s; the controller's own stop is shorter.
STOP_SECONDS = GRACE_SECONDS + HANDOVER_SECONDS + 5 + 5
READY_SECONDS = 60


class ClusterError(Exception):
    """The cluster does not start or stop as it should. ``str()`` is for the terminal."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything is. ``run`` has pid files and logs; ``state`` is what must outlive a stop."""

    certs: Path
    run: Path
    state: Path
    settings: Path
    http_port: int
    grpc_port: int

    def pid_file(self, name: str) -> Path:
        return self.run / f"{name}.pid"

    def log_file(self, name: str) -> Path:
        return self.run / f"{name}.log"

    def settings_file(self, name: str) -> Path:
        return self.settings / f"{name}.toml"

    def worker_state(self, name: str) -> Path:
        return self.state / name

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.http_port}"

    def make_directories(self) -> None:
        for directory in (self.run, self.state, self.settings):
            directory.mkdir(parents=True, exist_ok=True)


def controller_settings(layout: Layout) -> dict[str, dict[str, object]]:
    certs = layout.certs
    return {
        "grpc_server": {
            "addr": f"{HOST}:{layout.grpc_port}",
            "crt_file": certs / "controller.crt",
            "key_file": certs / "controller.key",
            "ca_file": certs / "ca.crt",
        },
        "http_server": {
            "addr": f"{HOST}:{layout.http_port}",
            "crt_file": certs / "http.crt",
            "key_file": certs / "http.key",
        },
        "auth": {role: certs / f"{role}.token.sha256" for role in ("admin", "operator", "viewer", "join")},
        "enrollment": {"ca_crt_file": certs / "ca.crt", "ca_key_file": certs / "ca.key"},
        "store": {"path": layout.state / "controller.db"},
    }


def worker_settings(layout: Layout, name: str) -> dict[str, dict[str, object]]:
    state = layout.worker_state(name)
    return {
        "grpc_server": {"addr": f"{HOST}:0", "ca_file": layout.certs / "ca.crt"},
        "controller": {"addr": f"{HOST}:{layout.grpc_port}", "enroll_url": layout.url},
        "auth": {"join": layout.certs / "join.token"},
        "worker": {"state_directory": state / "state"},
        "jobs": {
            "template_directory": TEMPLATES,
            "data_directory": state / "data",
            "log_file": layout.log_file(name),
        },
        # Where a limit cannot be enforced the worker says so, and goes on.
        "limits": {"require": False},
        "shutdown": {"grace_seconds": GRACE_SECONDS, "handover_seconds": HANDOVER_SECONDS},
    }


def environment() -> dict[str, str]:
    """Ours, without what belongs to make or to a client; JOBCLUSTER_BLOCK__KEY configures, as anywhere."""
    return {
        k: v
        for k, v in os.environ.items()
        if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS") and (not k.startswith("JOBCLUSTER_") or "__" in k)
    }


class LocalCluster:
    """The processes of one layout, found again by their pid files."""

    def __init__(self, layout: Layout, workers: int) -> None:
        self.layout = layout
        self.workers = [f"worker-{n}" for n in range(1, workers + 1)]
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._logged: dict[str, int] = {}
        """The size of each log before this start."""

    @property
    def token(self) -> str:
        return (self.layout.certs / "admin.token").read_text().strip()

    def api(self) -> Api:
        return Api(HOST, self.layout.http_port, self.layout.certs / "ca.crt", self.token)

    def running(self) -> dict[str, int]:
        """name → pid of what runs. A pid that another program has now is not ours."""
        found = {}
        for file in sorted(self.layout.run.glob("*.pid")):
            with contextlib.suppress(ValueError, OSError):
                pid = int(file.read_text())
                if self._is_ours(file.stem, pid):
                    found[file.stem] = pid
        return found

    def _is_ours(self, name: str, pid: int) -> bool:
        line = processes.command_line(pid)
        # A worker becomes its launcher, whose command line has no settings file.
        return str(self.layout.settings_file(name)) in line or (
            name != "controller" and str(LAUNCHER) in line
        )

    def start(self) -> None:
        """Starts everything and returns when the controller and every worker are ready.

        :raises ClusterError: if one ends, or they are not ready in time; then nothing of it runs any more.
        """
        self.layout.make_directories()
        make_certs = [sys.executable, str(ROOT / "certs" / "make_certs.py"), "--out", str(self.layout.certs)]
        if subprocess.run(make_certs, stdout=subprocess.DEVNULL).returncode:
            raise ClusterError("the certificates could not be made")
        try:
            self._spawn("controller", "jobcluster_controller", controller_settings(self.layout))
            for name in self.workers:
                self._spawn(name, "jobcluster_worker", worker_settings(self.layout, name))
            self._wait_ready()
        except BaseException as error:
            tails = self.log_tails()
            self.stop()
            if isinstance(error, ClusterError):
                raise ClusterError(f"{error}\n{tails}") from None
            raise

    def _spawn(self, name: str, module: str, settings: Mapping[str, Mapping[str, object]]) -> None:
        file = self.layout.settings_file(name)
        file.write_text(toml(settings))
        with open(self.layout.log_file(name), "ab") as log:
            self._logged[name] = log.tell()
            child = subprocess.Popen(
                [sys.executable, "-m", module, "--config", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                cwd="/",
                start_new_session=True,
            )
        self._children[name] = child
        self.layout.pid_file(name).write_text(f"{child.pid}\n")

    def _wait_ready(self) -> None:
        self._until(lambda: self._answers("/readyz"), "the controller is not ready")
        self._until(lambda: set(self.worker_ids()) <= self._ready_ids(), "not all workers are ready")

    def _until(self, reached: Callable[[], bool], failure: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not reached():
            for name, child in self._children.items():
                if child.poll() is not None:
                    raise ClusterError(f"{name} ended with {child.returncode}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{failure} within {READY_SECONDS} s")
            time.sleep(0.05)

    def _answers(self, path: str) -> bool:
        try:
            self.api().call("GET", path, seconds=5)
        except (OSError, ApiError):
            return False
        return True

    def worker_ids(self) -> list[str]:
        """The workers' ids, as their certificates say; "" for one that has not enrolled yet."""
        ids = []
        for name in self.workers:
            try:
                certificate = self.layout.worker_state(name) / "state" / "worker.crt"
                ids.append(identity_of(certificate.read_bytes()).name)
            except (OSError, ValueError):
                ids.append("")
        return ids

    def _ready_ids(self) -> set[str]:
        try:
            workers: list[dict[str, Any]] = self.api().get("/v1/workers", seconds=5)["workers"]
        except (OSError, ApiError, ValueError):
            return set()
        return {w["worker_id"] for w in workers if w["state"] == "ready"}

    def stop(self) -> list[str]:
        """Stops the workers, then the controller, which takes their last ends. Returns the names of those stopped.

        :raises ClusterError: if one had to be killed.
        """
        running = self.running()
        workers = {name: pid for name, pid in running.items() if name != "controller"}
        killed = self._end(workers) + self._end({n: p for n, p in running.items() if n not in workers})
        for file in self.layout.run.glob("*.pid"):
            file.unlink()
        if killed:
            raise ClusterError(
                f"did not end within {STOP_SECONDS} s of SIGTERM and had to be killed: {' '.join(killed)}"
            )
        return list(running)

    def _end(self, pids: Mapping[str, int]) -> list[str]:
        for pid in pids.values():
            processes.send(pid, signal.SIGTERM)
        late = processes.wait_all(list(pids.values()), STOP_SECONDS)
        for pid in late:
            for each in (pid, *processes.descendants(pid)):
                processes.send(each, signal.SIGKILL)
        for child in self._children.values():
            if child.pid in pids.values():
                child.wait(STOP_SECONDS)
        return [name for name, pid in pids.items() if pid in late]

    def log_tails(self, lines: int = 15) -> str:
        """What the processes of this start wrote last; of those that have ended at the end, where it is seen."""
        texts = []
        for name in sorted(self._children, key=lambda name: self._children[name].poll() is not None):
            file = self.layout.log_file(name)
            written = file.read_bytes()[self._logged[name] :].decode(errors="replace")
            texts.append("\n".join([f"--- {file}", *written.splitlines()[-lines:]]))
        return "\n".join(texts)
