"""`make demo`: a controller and two workers of its own, real jobs over HTTP, and nothing left afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tools import processes
from tools.api import Api, ApiError
from tools.host import free_port
from tools.local_cluster import ClusterError, Layout, LocalCluster

WORKERS = 2
WAIT_SECONDS = 30
Job = dict[str, Any]


class DemoError(Exception):
    """Something is not as it must be."""


@dataclass(frozen=True, slots=True)
class Screen:
    """The terminal; colours only where there is one."""

    colours: bool

    def paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours else text

    def title(self, text: str) -> None:
        print(f"\n{self.paint('1;36', text)}", flush=True)

    def line(self, label: str, text: str) -> None:
        print(f"  {self.paint('2', f'{label:<12}')} {text}", flush=True)

    def output(self, content: bytes) -> None:
        for text in content.decode(errors="replace").splitlines():
            print(f"  {self.paint('2', '           │')} {text}", flush=True)

    def holds(self, what: str, why_not: str) -> None:
        said = self.paint("33", "no ") if why_not else self.paint("32", "yes")
        print(f"  {said} {what}", flush=True)
        for text in textwrap.wrap(why_not, 100):
            print(f"      {self.paint('2', text)}", flush=True)

    def end(self, job: Job) -> None:
        task = job["tasks"][0]
        code = "none" if job["exit_code"] is None else job["exit_code"]
        colour = {"succeeded": "32", "failed": "31"}.get(job["state"], "33")
        parts = [self.paint(colour, job["state"]), f"reason {job['reason']}", f"exit code {code}"]
        parts += [f"signal {job['signal']}"] if job["signal"] else []
        self.line("end", ", ".join([*parts, f"on worker {task['worker_id']}"]))


def expect(job: Job, **wanted: object) -> None:
    """
    :raises DemoError: if the job has not these fields.
    """
    got = {key: job[key] for key in wanted}
    if got != wanted:
        raise DemoError(f"job {job['job_id']} is {got}, not {wanted}: {job.get('error_text')}")


def run_job(api: Api, screen: Screen, title: str, spec: Mapping[str, object], **wanted: object) -> bytes:
    """Starts a job, waits for its end, shows it; returns its output."""
    screen.title(title)
    screen.line("POST", f"/v1/jobs {json.dumps(spec)}")
    job = api.post(f"/v1/jobs?wait={WAIT_SECONDS}", spec)
    output = api.call("GET", f"/v1/jobs/{job['job_id']}/output")
    screen.output(output)
    screen.end(job)
    expect(job, done=True, **wanted)
    return output


def stop_job(api: Api, screen: Screen) -> None:
    screen.title("A job that is stopped")
    # The background sleep shows that a stop ends the whole tree, not the first process alone.
    spec = {"command": ["bash", "-c", "sleep 600 & echo started; sleep 600"]}
    screen.line("POST", f"/v1/jobs {json.dumps(spec)}")
    job_id = api.post("/v1/jobs", spec)["job_id"]
    screen.output(first_line(api, job_id))
    screen.line("POST", f"/v1/jobs/{job_id}/stop")
    job = api.post(f"/v1/jobs/{job_id}/stop?wait={WAIT_SECONDS}", {"grace_seconds": 5})
    screen.end(job)
    expect(job, state="stopped", reason="stopped")


def first_line(api: Api, job_id: str) -> bytes:
    with api.stream(f"/v1/jobs/{job_id}/output?follow=true", WAIT_SECONDS) as stream:
        line: bytes = stream.readline()
    if not line.endswith(b"\n"):
        raise DemoError(f"job {job_id} ended before it wrote a line")
    return line


def show_workers(api: Api, screen: Screen) -> list[dict[str, Any]]:
    screen.title("Workers, each with a certificate of its own")
    workers: list[dict[str, Any]] = api.get("/v1/workers")["workers"]
    for worker in workers:
        screen.line(worker["state"], f"{worker['worker_id']} at {worker['address']}")
    return workers


def show_enforced(workers: list[dict[str, Any]], screen: Screen) -> None:
    """Limits as the workers report them, and what confinement a job of theirs has here."""
    screen.title("Limits: enforced by the kernel on this machine?")
    reasons: dict[str, list[str]] = {}
    for resource, entry in sorted(workers[0]["enforced"].items()):
        reasons.setdefault("" if entry["ok"] else entry.get("why") or "no reason given", []).append(resource)
    for why, resources in reasons.items():
        screen.holds(", ".join(resources), why)
    screen.title("Confinement of a job's processes here")
    code = (
        "import json; from jobcluster_worker.sandbox import confine;"
        "print(json.dumps(confine.prepare_host().in_words()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    for what, said in json.loads(done.stdout).items():
        screen.holds(what, "" if said == "yes" else said.removeprefix("no: "))


def show(cluster: LocalCluster, screen: Screen) -> None:
    api = cluster.api()
    workers = show_workers(api, screen)
    ended = {"state": "succeeded", "reason": "exited", "exit_code": 0}
    output = run_job(
        api, screen, "A job in bash", {"command": "bash", "path": "hello.sh", "args": ["cluster"]}, **ended
    )
    if b"Hello cluster" not in output:
        raise DemoError("the bash job's output is not there")
    output = run_job(
        api,
        screen,
        "A job in Python",
        {"command": "python3", "path": "hello.py", "args": ["cluster"]},
        **ended,
    )
    if b"Hello cluster" not in output:
        raise DemoError("the Python job's output is not there")
    failing = {
        "command": "bash",
        "path": "fail.sh",
        "files": {"fail.sh": "echo 'no such table' >&2\nexit 3\n"},
    }
    run_job(api, screen, "A job that fails", failing, state="failed", reason="exited", exit_code=3)
    stop_job(api, screen)
    show_enforced(workers, screen)


@contextlib.contextmanager
def own_cluster() -> Iterator[LocalCluster]:
    """A cluster in a directory of its own; on leaving neither a process nor the directory is there.

    :raises DemoError: if something is left.
    """
    directory = Path(tempfile.mkdtemp(prefix="jobcluster-demo-"))
    # Where no mount namespace is to be had (root in a plain container), tasks reach their directories by path.
    directory.chmod(0o711)
    folders = {name: directory / name for name in ("certs", "run", "state", "settings")}
    layout = Layout(**folders, http_port=free_port(), grpc_port=free_port())
    cluster = LocalCluster(layout, WORKERS)
    try:
        cluster.start()
        try:
            yield cluster
        except (DemoError, ApiError, OSError, KeyError, subprocess.SubprocessError) as error:
            raise DemoError(f"{error}\n{cluster.log_tails()}") from error
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(directory)
    if left := list(processes.with_argument(str(directory))):
        raise DemoError(f"processes are left: {left}")


def interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGHUP, interrupted)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has not all characters of a job's output
    screen = Screen(sys.stdout.isatty())
    print("jobcluster: a controller and two workers as plain processes, mutual TLS between them", flush=True)
    try:
        with own_cluster() as cluster:
            screen.line("controller", cluster.layout.url)
            show(cluster, screen)
    except (DemoError, ClusterError, ApiError, OSError) as error:
        sys.stderr.write(f"\ndemo: failed: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ndemo: interrupted; everything was stopped\n")
        return 130
    screen.title("Done: all ended as they should, everything was stopped and removed.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
