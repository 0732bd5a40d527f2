"""As the first process of a container a service has no default action of signals: not one of them may be lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster, Service, descendants, running_cluster

FIRST = Path(__file__).with_name("first_process.py")
_LOOK = """
import importlib, importlib.abc, signal, sys
class Look(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        print(name, signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, []), flush=True)
sys.meta_path.insert(0, Look())
importlib.import_module(sys.argv[1] + ".__main__")
"""


@pytest.mark.parametrize("package", ["jobcluster_worker", "jobcluster_controller"])
def test_signals_are_held_before_anything_is_imported(package: str) -> None:
    done = subprocess.run([sys.executable, "-c", _LOOK, package], check=True, capture_output=True, text=True)
    imported = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, held in imported if held == "False"] == [package, f"{package}.__main__"]
    assert len(imported) > 50


def blocked(pid: int) -> set[int]:
    """The signals that the process holds (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.split("SigBlk:")[1].split()[0], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


@contextmanager
def first_process(service: Service, cluster: Cluster) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """The service as a first process, its pid, and what it waits for: its configuration is a pipe that says nothing
    until ``let_go``."""
    config = cluster.directory / f"{service.name}.toml"
    config.rename(config.with_suffix(".later"))
    os.mkfifo(config)
    argv = [sys.executable, str(FIRST), *service.argv]
    with (
        service.log.open("ab") as log,
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        try:
            yield process, pid, os.open(config, os.O_WRONLY)  # opened as soon as it reads
        finally:
            if process.poll() is None:
                os.kill(pid, signal.SIGKILL)


def let_go(service: Service, cluster: Cluster, writer: int) -> None:
    config = cluster.directory / f"{service.name}.toml"
    config.with_suffix(".later").rename(config)
    os.close(writer)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a pid namespace with a /proc of its own")
@pytest.mark.parametrize("name", ["worker", "controller"])
def test_a_sigterm_that_comes_while_it_starts_ends_it_in_order(tmp_path: Path, name: str) -> None:
    with running_cluster(tmp_path, workers=1) as cluster:
        service = cluster.workers[0] if name == "worker" else cluster.controller
        assert service.stop() == 0
        with first_process(service, cluster) as (process, pid, writer):
            assert {signal.SIGTERM, signal.SIGINT} <= blocked(pid)
            os.kill(pid, signal.SIGTERM)
            let_go(service, cluster, writer)
            assert process.wait(30) == 0, cluster.logs()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a pid namespace with a /proc of its own")
def test_what_the_first_process_starts_holds_no_signal(tmp_path: Path) -> None:
    with running_cluster(tmp_path, workers=1) as cluster:
        worker = cluster.workers[0]
        assert worker.stop() == 0
        with first_process(worker, cluster) as (process, pid, writer):
            let_go(worker, cluster, writer)
            cluster.wait_ready(1)
            job = cluster.run({"command": ["grep", "SigBlk", "/proc/self/status"]})
            assert cluster.output(job["job_id"]).split() == [b"SigBlk:", b"0" * 16]
            mine = {pid, *descendants(pid)}
            assert len(mine) >= 3  # with the server and a supervisor
            assert {each: blocked(each) for each in mine} == {each: set() for each in mine}
            os.kill(pid, signal.SIGTERM)
            assert process.wait(30) == 0, cluster.logs()
