"""A real cluster on loopback for tests: certificates, a controller, workers as plain processes, mTLS."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from tools.host import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
T = TypeVar("T")


def eventually(get: Callable[[], T], *, within: float = 30.0, what: str = "the state") -> T:
    """Calls ``get`` until its answer is true; fails after ``within`` seconds with the last answer."""
    deadline = time.monotonic() + within
    answer = get()
    while not answer:
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} was not reached within {within} s: last seen {answer!r}")
        time.sleep(0.02)
        answer = get()
    return answer


def processes() -> dict[int, tuple[int, str, str]]:
    """Every process of this machine: pid → (parent's pid, state, command line)."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            found[int(entry.name)] = (int(after_name[1]), after_name[0], line)
    return found


def descendants(pid: int) -> dict[int, str]:
    """The processes below ``pid`` that are not zombies: pid → command line."""
    everything, below, grown = processes(), {pid}, True
    while grown:
        more = {p for p, (parent, _, _) in everything.items() if parent in below} - below
        below |= more
        grown = bool(more)
    return {p: everything[p][2] for p in below - {pid} if p in everything and everything[p][1] != "Z"}


def marked(marker: str) -> dict[int, str]:
    """The processes whose command line holds ``marker``."""
    return {p: line for p, (_, state, line) in processes().items() if marker in line and state != "Z"}


@dataclass
class Service:
    """One process of the cluster, and how to start it again."""

    name: str
    argv: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("JOBCLUSTER_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, within: float = 30.0) -> int:
        assert self.process is not None
        return self.process.wait(within)

    def stop(self, within: float = 30.0) -> int:
        self.signal(signal.SIGTERM)
        return self.wait(within)


def toml(blocks: dict[str, dict[str, Any]]) -> str:
    """Blocks of plain keys as TOML: JSON's strings, numbers, booleans and lists are TOML's too."""
    lines = []
    for block, keys in blocks.items():
        lines.append(f"[{block}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items() if value is not None]
    return "\n".join(lines) + "\n"


def merged(base: dict[str, dict[str, Any]], more: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        block: {**base.get(block, {}), **more.get(block, {})}
        for block in [*base, *(b for b in more if b not in base)]
    }


@dataclass
class Cluster:
    """Made in a directory of its own; ``close`` ends what it started."""

    directory: Path
    controller_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    worker_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    templates: Path = REPOSITORY / "examples" / "templates"

    def __post_init__(self) -> None:
        self.https, self.grpc = free_port(), free_port()
        self.certs = self.directory / "certs"
        self.workers: list[Service] = []
        subprocess.run(
            [sys.executable, REPOSITORY / "certs" / "make_certs.py", "--out", self.certs],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        settings = merged(
            {
                "grpc_server": {
                    "addr": f"127.0.0.1:{self.grpc}",
                    **self.leaf("controller"),
                    "ca_file": str(self.certs / "ca.crt"),
                },
                "http_server": {"addr": f"127.0.0.1:{self.https}", **self.leaf("http")},
                "auth": {
                    r: str(self.certs / f"{r}.token.sha256") for r in ("admin", "operator", "viewer", "join")
                },
                "enrollment": {
                    "ca_crt_file": str(self.certs / "ca.crt"),
                    "ca_key_file": str(self.certs / "ca.key"),
                },
                "store": {"path": str(self.directory / "controller.sqlite3")},
            },
            self.controller_settings,
        )
        self.controller = self._service("controller", "jobcluster_controller", settings)

    def leaf(self, name: str) -> dict[str, str]:
        return {"crt_file": str(self.certs / f"{name}.crt"), "key_file": str(self.certs / f"{name}.key")}

    def _service(self, name: str, module: str, settings: dict[str, dict[str, Any]]) -> Service:
        config = self.directory / f"{name}.toml"
        config.write_text(toml(settings))
        return Service(
            name, [sys.executable, "-m", module, "--config", str(config)], self.directory / f"{name}.log"
        )

    def add_worker(self, settings: dict[str, dict[str, Any]] | None = None) -> Service:
        """A worker with a state of its own, started; it enrols with the join token."""
        name = f"worker-{len(self.workers) + 1}"
        home = self.directory / name
        home.mkdir(exist_ok=True)
        base: dict[str, dict[str, Any]] = {
            "grpc_server": {"addr": "0.0.0.0:0", "ca_file": str(self.certs / "ca.crt")},
            "controller": {"addr": f"127.0.0.1:{self.grpc}", "enroll_url": f"https://127.0.0.1:{self.https}"},
            "auth": {"join": str(self.certs / "join.token")},
            "worker": {"state_directory": str(home / "state")},
            "jobs": {
                "template_directory": str(self.templates),
                "data_directory": str(home / "data"),
                "log_file": str(home / "worker.log"),
            },
            "limits": {"require": False},
            "shutdown": {"grace_seconds": 5},
        }
        service = self._service(
            name, "jobcluster_worker", merged(merged(base, self.worker_settings), settings or {})
        )
        self.workers.append(service)
        service.start()
        return service

    def start(self, workers: int = 2) -> None:
        self.controller.start()
        for _ in range(workers):
            self.add_worker()
        self.wait_ready(workers)

    def wait_ready(self, workers: int, within: float = 60.0) -> list[dict[str, Any]]:
        def ready() -> list[dict[str, Any]] | None:
            for service in (self.controller, *self.workers):
                if service.process is not None and service.process.poll() not in (None, 0, -9):
                    raise AssertionError(f"{service.name} ended {service.process.poll()}:\n{self.logs()}")
            try:
                found = [w for w in self.list_workers() if w["state"] == "ready"]
            except httpx2.TransportError:
                return None
            return found if len(found) >= workers else None

        return eventually(ready, within=within, what=f"{workers} ready workers") or []

    def token(self, role: str) -> str:
        return (self.certs / f"{role}.token").read_text().strip()

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certs / "ca.crt"))

    def client(self, role: str | None = "admin", timeout: float = 40.0) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.token(role)}"} if role else {}
        return httpx2.Client(
            base_url=f"https://127.0.0.1:{self.https}",
            headers=headers,
            verify=self.context(),
            timeout=timeout,
            trust_env=False,
        )

    def list_workers(self) -> list[dict[str, Any]]:
        with self.client() as client:
            answer = client.get("/v1/workers")
            answer.raise_for_status()
            workers: list[dict[str, Any]] = answer.json()["workers"]
            return workers

    def run(self, spec: dict[str, Any], wait: float = 30, **headers: str) -> dict[str, Any]:
        """Posts the job and returns it at its end (or after ``wait`` seconds)."""
        with self.client() as client:
            answer = client.post("/v1/jobs", params={"wait": wait}, json=spec, headers=headers)
            assert answer.status_code in (200, 201), answer.text
            job: dict[str, Any] = answer.json()
            return job

    def post(self, spec: dict[str, Any], **headers: str) -> dict[str, Any]:
        """Posts the job and returns it at once."""
        with self.client() as client:
            answer = client.post("/v1/jobs", json=spec, headers=headers)
            assert answer.status_code in (200, 201), answer.text
            job: dict[str, Any] = answer.json()
            return job

    def job(self, job_id: str, wait: float | None = None) -> dict[str, Any]:
        with self.client() as client:
            answer = client.get(f"/v1/jobs/{job_id}", params={} if wait is None else {"wait": wait})
            assert answer.status_code == 200, answer.text
            job: dict[str, Any] = answer.json()
            return job

    def stop_job(self, job_id: str, wait: float | None = 30, **body: Any) -> dict[str, Any]:
        with self.client() as client:
            answer = client.post(
                f"/v1/jobs/{job_id}/stop", params={} if wait is None else {"wait": wait}, json=body
            )
            assert answer.status_code == 200, answer.text
            job: dict[str, Any] = answer.json()
            return job

    def output(self, job_id: str, **params: Any) -> bytes:
        with self.client() as client:
            answer = client.get(f"/v1/jobs/{job_id}/output", params=params)
            assert answer.status_code == 200, answer.text
            return answer.content

    def until(self, job_id: str, *states: str, within: float = 30.0) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["state"] in states else None

        job = eventually(reached, within=within, what=f"job {job_id} in {states}")
        assert job is not None
        return job

    def server_pid(self, worker: Service) -> int:
        """The pid of the worker's gRPC server: the launcher's child that was exec'd as the server."""
        return eventually(
            lambda: next(
                (p for p, line in descendants(worker.pid).items() if "jobcluster_worker.server" in line), 0
            ),
            what="the worker's server",
        )

    def worker_of(self, service: Service) -> str:
        """The worker id of this worker process, from its certificate in its state directory."""
        from jobcluster_common.certificates import identity_of

        certificate = eventually(
            lambda: next(iter((self.directory / service.name / "state").rglob("*.crt")), None),
            what="the certificate",
        )
        assert certificate is not None
        return identity_of(certificate.read_bytes()).name

    def logs(self, tail: int = 3000) -> str:
        files = sorted(self.directory.glob("*.log")) + sorted(self.directory.glob("*/*.log"))
        return "\n".join(f"--- {f}\n{f.read_text(errors='replace')[-tail:]}" for f in files)

    def close(self) -> None:
        services = [*self.workers, self.controller]
        for service in services:
            if service.running():
                service.signal(signal.SIGTERM)
        for service in services:
            if service.process is not None:
                try:
                    service.wait(30)
                except subprocess.TimeoutExpired:
                    below = descendants(service.pid)
                    service.signal(signal.SIGKILL)
                    service.wait(5)
                    for pid in below:
                        try:
                            os.kill(pid, signal.SIGKILL)
                        except ProcessLookupError:
                            continue
                    raise AssertionError(
                        f"{service.name} did not end within 30 s of SIGTERM:\n{self.logs()}"
                    ) from None


@contextmanager
def running_cluster(directory: Path, workers: int = 2, **settings: Any) -> Iterator[Cluster]:
    cluster = Cluster(directory, **settings)
    try:
        cluster.start(workers)
        yield cluster
    finally:
        cluster.close()
