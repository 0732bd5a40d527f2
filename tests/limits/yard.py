"""A worker's launcher and supervisor in one small process: makes the tree, starts tasks in leaves, tells what it sees.

Run as `python -I -S yard.py WORKER_SOURCES DATA_DIRECTORY [LIMITS_WORKER_JSON]`; one JSON line in, one out.
"""

import errno
import faulthandler
import json
import os
import select
import signal
import struct
import sys
from pathlib import Path
from typing import Any

sys.path.append(sys.argv[1])

from jobcluster_worker.cgroup import tree as cgroups
from jobcluster_worker.cgroup.leaf import Leaf
from jobcluster_worker.sandbox import confine, libc, spawn

FIRST_UID = 100_000


class Task:
    """One start: its leaf, its process, and its output in a file (a pipe would have to be read meanwhile)."""

    def __init__(self, leaf: Leaf, work: Path) -> None:
        self.leaf = leaf
        self.work = work
        self.pid = 0


class Yard:
    def __init__(self, data: Path, limits_worker: dict[str, Any]) -> None:
        self.data = data
        self.tree, self.enforced = cgroups.setup(data, limits_worker)
        self.powers = confine.prepare_host()
        self.tasks: dict[str, Task] = {}
        if self.tree is not None:
            stand_in_for_the_launcher()
            self.tree.enter_supervisors()

    def hello(self) -> dict[str, Any]:
        return {
            "enforced": self.enforced,
            "root": None if self.tree is None else str(self.tree.root),
            "confinement": confine.what_is_enforced(),
            "fast": spawn._fast_way_into_leaf,
            "data": str(self.data),
            "own_cgroup": Path("/proc/self/cgroup").read_text(),
            "pid": os.getpid(),
        }

    def start(self, name: str, argv: list[str], **options: Any) -> dict[str, Any]:
        """Starts a task named job.rank; answers with pid, leaf and what the leaf says at that moment."""
        assert self.tree is not None
        job, _, rank = name.partition(".")
        leaf = self.tree.leaf(job, int(rank or 0), 1, options.get("limits", {}))
        work = self.data / name
        work.mkdir(exist_ok=True)
        uid = FIRST_UID + 1 + len(self.tasks) if self.powers.root else None
        if uid is not None:
            os.chown(work, uid, uid)
        task = Task(leaf, work)
        try:
            task.pid = self._spawn(task, uid, argv, options)
        except OSError:
            leaf.remove()
            raise
        self.tasks[name] = task
        return {"pid": task.pid, "leaf": str(leaf.path), "effective": leaf.effective}

    def _spawn(self, task: Task, uid: int | None, argv: list[str], options: dict[str, Any]) -> int:
        confinement = confine.Confinement(
            uid, uid, task.work, None, [self.data], options.get("network", "host"), task.leaf.path
        )
        if (given := options.get("uid", uid)) != uid:
            confinement.uid = confinement.gid = given
        if templates := options.get("templates"):
            confinement.template_directory = Path(templates)
        if options.get("vanish"):
            task.leaf.path.rmdir()
        output = os.open(f"{task.work}.output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return spawn.spawn(
                [os.fsencode(word) for word in argv],
                os.fsencode(argv[0]),
                {b"PATH": b"/usr/local/bin:/usr/bin:/bin", b"HOME": b"/tmp"},
                (nothing, output, output),
                os.fsencode(options.get("cwd") or confine.job_paths(confinement)[0]),
                task.leaf.fd,
                confinement,
            )
        finally:
            os.close(output)
            os.close(nothing)

    def wait(self, name: str) -> dict[str, Any]:
        """Waits for the leader, kills what it left, waits for the leaf to be empty, reads counters, removes it."""
        task = self.tasks[name]
        status = os.waitstatus_to_exitcode(os.waitpid(task.pid, 0)[1])
        usage_at_exit = task.leaf.usage()
        left = len(task.leaf.processes())
        if task.leaf.populated():
            task.leaf.kill()
        wait_empty(task.leaf)
        reap()
        usage = task.leaf.usage()
        task.leaf.remove()
        output = Path(f"{task.work}.output").read_text(errors="replace")
        return {
            "status": status,
            "usage": usage,
            "usage_at_exit": usage_at_exit,
            "left": left,
            "output": output,
        }

    def usage(self, name: str) -> dict[str, Any]:
        return self.tasks[name].leaf.usage()

    def signal(self, name: str, number: int) -> dict[str, Any]:
        return {"reached": self.tasks[name].leaf.signal(number)}

    def count(self) -> dict[str, Any]:
        assert self.tree is not None
        groups = [
            str(path.relative_to(self.tree.jobs)) for path in self.tree.jobs.rglob("*") if path.is_dir()
        ]
        return {
            "fds": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "mounts": Path("/proc/self/mountinfo").read_text().count("jobcluster"),  # others come and go
            "groups": sorted(groups),
        }

    def close(self) -> dict[str, Any]:
        if self.tree is not None:
            self.tree.close()
        return {}


def refuse_clone3() -> None:
    """As the filter of an older container engine does: clone3 does not exist."""
    program = ((0x20, 0, 0, 0), (0x15, 0, 1, 435), (6, 0, 0, 0x50000 | errno.ENOSYS), (6, 0, 0, 0x7FFF0000))
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    libc.install_seccomp(b"".join(struct.pack("<HBBI", *instruction) for instruction in program))


def stand_in_for_the_launcher() -> None:
    """A process that stays in init/ as long as we live: an empty init/ means that the tree's owner is dead."""
    reader, writer = os.pipe()  # ours closes when we die
    if os.fork() == 0:
        os.close(writer)
        for fd in (0, 1):
            os.close(fd)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)


def wait_empty(leaf: Leaf) -> None:
    poll = select.poll()
    poll.register(leaf.events_fd(), select.POLLPRI)
    while leaf.populated():
        poll.poll(10_000)


def reap() -> None:
    """Orphans of tasks come to us, a subreaper."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main() -> None:
    faulthandler.register(signal.SIGUSR1)
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    if os.environ.get("YARD_CLONE3") == "none":
        refuse_clone3()
    if plain := int(os.environ.get("YARD_UID", "0")):
        os.chown(sys.argv[2], plain, plain)
        os.setgroups([])
        os.setresgid(plain, plain, plain)
        os.setresuid(plain, plain, plain)
    limits = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    yard = Yard(Path(sys.argv[2]), limits)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(yard, request.pop("verb"))(**request)
        except OSError as error:
            answer = {"errno": error.errno, "text": f"{error.strerror}: {error.filename}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


main()
