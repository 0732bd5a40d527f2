"""Real clusters on a kernel with cgroup v2, and how an outside reader sees what their workers made there."""

import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx2

from tests.integration.cluster import REPOSITORY, Cluster, Service, eventually
from tests.limits.containers import ROOT


class KeptClient(httpx2.Client):
    """Stays open when it is left: a TLS handshake for each request is much of a guest's one CPU."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None


@dataclass
class PlacedCluster(Cluster):
    """Its workers may stand in a container's place: ``wrappers`` is what to put before a service's command, by name.

    Jobs that name no worker go to the first.
    """

    wrappers: dict[str, Sequence[str]] = field(default_factory=dict)
    _clients: dict[str | None, KeptClient] = field(default_factory=dict)

    def client(self, role: str | None = "admin", timeout: float = 90.0) -> httpx2.Client:
        if role not in self._clients:
            self._clients[role] = KeptClient(
                base_url=f"https://127.0.0.1:{self.https}",
                headers={"Authorization": f"Bearer {self.token(role)}"} if role else {},
                verify=self.context(),
                timeout=timeout,
                trust_env=False,
                limits=httpx2.Limits(keepalive_expiry=2.0),
            )
        return self._clients[role]

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        super().close()

    def _service(self, name: str, module: str, settings: dict[str, dict[str, Any]]) -> Service:
        service = super()._service(name, module, settings)
        service.argv = [*self.wrappers.get(name, ()), *service.argv]
        return service

    def post(self, spec: dict[str, Any], **headers: str) -> dict[str, Any]:
        return super().post({"worker_id": self.worker_of(self.workers[0]), **spec}, **headers)

    def run(self, spec: dict[str, Any], wait: float = 60, **headers: str) -> dict[str, Any]:
        return super().run({"worker_id": self.worker_of(self.workers[0]), **spec}, wait, **headers)

    def place(self, wrapper: Sequence[str], settings: dict[str, dict[str, Any]] | None = None) -> Service:
        """Starts a worker in that place."""
        self.wrappers[f"worker-{len(self.workers) + 1}"] = wrapper
        return self.add_worker(settings)

    def take_away(self, services: Iterable[Service]) -> None:
        """Those that have not ended by themselves end at once."""
        for service in services:
            if service.running():
                service.signal(signal.SIGKILL)
                service.wait()
            self.workers.remove(service)


def first_process(service: Service) -> int:
    """The container's PID 1 as it is seen from outside: an engine signals that, not what made the namespaces."""
    return int(Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()[0])


def python(code: str, **spec: Any) -> dict[str, Any]:
    """A job spec: the program is sent along."""
    return {"command": "/usr/bin/python3", "path": "main.py", "files": {"main.py": code}, **spec}


def shell(script: str, **spec: Any) -> dict[str, Any]:
    return {"command": "sh", "args": ["-c", script], **spec}


def leaf_of(job_id: str) -> Path:
    """The leaf of a job's only task, found by an outside reader."""
    return eventually(lambda: next(iter(ROOT.rglob(f"jobs/{job_id}/*.*/")), None), what="the leaf") or ROOT


def held(leaf: Path) -> dict[str, Any]:
    """What the kernel's files say, in the words of ``limits.effective``, by a reader that is not the worker's."""

    def read(name: str) -> str:
        return (leaf / name).read_text().strip() if (leaf / name).exists() else "max"

    quota, _, period = read("cpu.max").partition(" ")
    lines = read("io.max").replace("=", " ").split()[1:]
    io = dict(zip(lines[::2], lines[1::2], strict=True))
    words = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}
    group = {"max": None, "0": "process", "1": "group"}
    return {
        "cpu": None if quota == "max" else int(quota) / int(period),
        "memory": number(read("memory.max")),
        "pids": number(read("pids.max")),
        "io": {ours: number(io.get(kernel, "max")) for ours, kernel in words.items()},
        "oom": group[read("memory.oom.group")],
    }


def number(word: str) -> int | None:
    return None if word == "max" else int(word)


GUARDED = 1
"""Index of the worker that has limits for all its jobs together."""
_FOR_ALL_JOBS = {"cpu": 0.5, "memory": "160MiB", "pids": 40}
_HERE = "import os\nprint(os.getuid(), __file__, open(os.path.dirname(__file__) + '/beside').read())\n"


@contextmanager
def two_workers(scratch: Path) -> Iterator[PlacedCluster]:
    """A plain worker, which takes what asks for none, and one with limits for all its jobs together.

    Their templates are in a clone that root alone can read.
    """
    home = Path(tempfile.mkdtemp(dir=scratch, prefix="stack-"))
    home.chmod(0o755)  # what is kept from jobs below is kept by more than this
    templates = home / "clone" / "templates"
    templates.parent.mkdir(mode=0o700)
    shutil.copytree(REPOSITORY / "examples" / "templates", templates)
    (templates / "own").mkdir()
    (templates / "own" / "here.py").write_text(_HERE)
    (templates / "own" / "beside").write_text("sibling")
    cluster = PlacedCluster(
        home,
        controller_settings={"limits.default": {"memory": "512MiB"}},
        worker_settings={"limits": {"require": True}},
        templates=templates,
    )
    try:
        cluster.controller.start()
        cluster.add_worker({"limits.max": {"pids": 400}, "limits.default.io": {"read_iops": 90_000}})
        cluster.add_worker({"limits.worker": _FOR_ALL_JOBS})
        cluster.wait_ready(2)
        yield cluster
    finally:
        cluster.close()
    assert [
        service.name for service in cluster.workers if (ROOT / f"jobcluster-{service.pid}").exists()
    ] == []
    shutil.rmtree(home)
