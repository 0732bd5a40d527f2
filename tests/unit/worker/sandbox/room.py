"""A stand-in for a supervisor: takes starts as JSON lines on stdin and answers each when its process has ended.

Run as `python -I -S room.py WORKER_SOURCES [UID]`; with a UID it becomes that plain user first.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.append(sys.argv[1])

from jobcluster_worker.sandbox import confine, forked, spawn
from jobcluster_worker.sandbox.confine import Confinement
from jobcluster_worker.sandbox.start import Start


def confinement_of(request: dict[str, Any]) -> Confinement:
    templates = request.get("templates")
    return Confinement(
        uid=request.get("uid"),
        gid=request.get("uid"),
        work_directory=Path(request["work"]),
        template_directory=Path(templates) if templates else None,
        hide=[Path(name) for name in request.get("hide", [])],
        network=request.get("network", "host"),
    )


def run(request: dict[str, Any]) -> dict[str, Any]:
    confinement = confinement_of(request)
    argv = [os.fsencode(word) for word in request["argv"]]
    executable = os.fsencode(request.get("executable") or request["argv"][0])
    env = {os.fsencode(name): os.fsencode(value) for name, value in request.get("env", {}).items()}
    cwd = os.fsencode(request.get("cwd") or confine.job_paths(confinement)[0])
    reader, writer = os.pipe()
    nothing = os.open("/dev/null", os.O_RDONLY)
    fds = (nothing, writer, writer)
    try:
        if request.get("way") == "fork":
            pid = forked.spawn(Start(argv, executable, env, fds, cwd, None, confinement))
        else:
            pid = spawn.spawn(argv, executable, env, fds, cwd, None, confinement)
    except OSError as error:
        os.close(reader)
        return {"errno": error.errno, "text": error.strerror, "filename": error.filename}
    finally:
        os.close(writer)
        os.close(nothing)
    with os.fdopen(reader, "rb") as pipe:
        output = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"pid": pid, "output": output.decode("utf-8", "replace"), "status": status}


def storm(request: dict[str, Any]) -> dict[str, Any]:
    """The same start from several threads at once, again and again, as a busy supervisor makes them."""
    answers: list[dict[str, Any]] = []

    def start_some() -> None:
        answers.extend(run(request) for _ in range(request["each"]))

    threads = [threading.Thread(target=start_some) for _ in range(request["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = [answer for answer in answers if answer.get("output") != request["expected"]]
    return {"done": len(answers), "wrong": wrong[:3]}


def count(_: dict[str, Any]) -> dict[str, Any]:
    return {
        "fds": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "mounts": Path("/proc/self/mountinfo").read_text().count("jobcluster"),  # others come and go
        "uid": os.geteuid(),
        "capabilities": status_line("CapEff"),
        "mount_namespace": os.readlink("/proc/self/ns/mnt"),
        "children": Path("/proc/self/task", str(os.getpid()), "children").read_text().split(),
    }


def status_line(name: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(name))


def paths(request: dict[str, Any]) -> dict[str, Any]:
    return {"paths": confine.job_paths(confinement_of(request))}


def main() -> None:
    if len(sys.argv) > 2:
        plain = int(sys.argv[2])
        os.setgroups([])
        os.setresgid(plain, plain, plain)
        os.setresuid(plain, plain, plain)
    confine.prepare_host()
    sys.stdout.write(json.dumps(confine.what_is_enforced()) + "\n")
    sys.stdout.flush()
    verbs = {"run": run, "count": count, "paths": paths, "storm": storm}
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.write(json.dumps(verbs[request.pop("verb")](request)) + "\n")
        sys.stdout.flush()


main()
