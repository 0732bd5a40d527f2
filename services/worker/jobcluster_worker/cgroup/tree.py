"""The worker's cgroups, and the only hand that makes them: init/, supervisors/, jobs/<job>/<task>."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jobcluster_worker.cgroup import cpu, device, files, io, memory, pids
from jobcluster_worker.cgroup.leaf import Enforcement, Leaf, remove_group
from jobcluster_worker.cgroup.place import OUTSIDE, NoPlace, Place, find_place
from jobcluster_worker.sandbox.rights import ENTRY_GID

CONTROLLERS: Final = (cpu.CONTROLLER, memory.CONTROLLER, io.CONTROLLER, pids.CONTROLLER)

_EVACUATIONS: Final = 50
_RACES: Final = 100
_OWN_WEIGHT: Final = "1000"  # ten times all jobs together: heartbeats stay on time under any load
_OWN_MEMORY_LOW: Final = str(64 << 20)


def nothing_enforced(why: str) -> Enforcement:
    """Every resource with the same reason."""
    return {name: {"ok": False, "why": why} for name in CONTROLLERS}


def setup(
    data_directory: Path, limits_worker: Mapping[str, Any] | None = None
) -> "tuple[Tree | None, Enforcement]":
    """Builds the worker's tree and moves the calling process into its init/; what is enforced, and why not.

    To be called by the launcher before anything else: it may put the process into namespaces of its own. The tree is
    None where there is no cgroup v2 that is ours.
    """
    try:
        place = find_place()
        tree = Tree(place, data_directory, limits_worker or {})
    except NoPlace as error:
        return None, nothing_enforced(str(error))
    except OSError as error:
        return None, nothing_enforced(f"the cgroups could not be made: {error}")
    return tree, tree.enforced


class Tree:
    """Our groups. Inherited by forks: supervisors make leaves in the same tree."""

    def __init__(self, place: Place, data_directory: Path, limits_worker: Mapping[str, Any]) -> None:
        self._place = place
        alone = place.is_container and os.getpid() == 1
        self.root = place.base if alone else place.base / f"jobcluster-{os.getpid()}"
        self.init = self.root / "init"
        self.supervisors = self.root / "supervisors"
        self.jobs = self.root / "jobs"
        self._io_device, no_device = _device_behind(data_directory)
        with _locked(place.base):
            _remove_dead_trees(place.base)
            for group in (self.root, self.init, self.supervisors, self.jobs):
                group.mkdir(exist_ok=True)
            files.write(self.init / "cgroup.procs", "0")
            missing = self._enable(no_device)
        self.enforced: Enforcement = {
            name: {"ok": name not in missing, "why": missing.get(name, "")} for name in CONTROLLERS
        }
        on = (files.read(self.jobs / "cgroup.subtree_control") or "").split()
        self._controllers = [name for name in CONTROLLERS if name in on]
        self._favour_ourselves()
        self._let_starts_enter(self.root)
        self._write_limits(self.jobs, limits_worker, per_task=False)

    def enter_supervisors(self) -> None:
        """Moves the calling process, a new supervisor, to the others of its kind."""
        files.write(self.supervisors / "cgroup.procs", "0")

    def leaf(self, job_id: str, rank: int, attempt: int, limits: Mapping[str, Any]) -> Leaf:
        """A fresh leaf with its limits written and read back.

        :raises FileExistsError: this attempt has one already; a leaf is never used twice
        :raises OSError: the kernel refused a limit, which the text names; then there is no leaf
        """
        path = self._make_leaf(job_id, f"{rank}.{attempt}")
        try:
            self._write_limits(path, limits, per_task=True)
            self._let_starts_enter(path)
            return Leaf(path, self._io_device, self.enforced)
        except OSError:
            remove_group(path, 1.0)
            with contextlib.suppress(OSError):
                path.parent.rmdir()
            raise

    def existing_leaf(self, job_id: str, rank: int, attempt: int) -> Leaf | None:
        """The leaf of an attempt that another process of ours made, or None."""
        with contextlib.suppress(FileNotFoundError):
            return Leaf(self.jobs / job_id / f"{rank}.{attempt}", self._io_device, self.enforced)
        return None

    def close(self) -> None:
        """Kills what is left in jobs/ and removes the tree as far as it can; for the launcher at its exit."""
        with contextlib.suppress(OSError), _locked(self._place.base):
            if self.root == self._place.base:  # the engine removes that one
                self._remove_groups_of_container()
                return
            home = self._place.base if self._place.is_real_root else self._place.base / OUTSIDE
            files.write(home / "cgroup.procs", "0")
            _remove_tree(self.root)

    def _remove_groups_of_container(self) -> None:
        files.write(self.init / "cgroup.procs", "0")
        for group in (self.jobs, self.supervisors):
            _remove_tree(group)
        on = files.read(self.root / "cgroup.subtree_control") or ""
        files.write(self.root / "cgroup.subtree_control", " ".join(f"-{name}" for name in on.split()))
        files.write(self.root / "cgroup.procs", "0")
        self.init.rmdir()

    def _make_leaf(self, job_id: str, name: str) -> Path:
        if "/" in job_id or job_id in ("", ".", ".."):
            raise OSError(errno.EINVAL, "not a job id", job_id)
        group = self.jobs / job_id
        for _ in range(_RACES):
            with contextlib.suppress(FileExistsError):
                group.mkdir()
            try:
                if self._controllers:  # by every task: who made the group may not have come so far yet
                    files.write(group / "cgroup.subtree_control", _plus(self._controllers))
                (group / name).mkdir()
                return group / name
            except FileNotFoundError:
                continue  # another task of this job was the last there, and took the group along
        raise OSError(errno.ENOENT, "no cgroup could be made", str(group / name))

    def _write_limits(self, group: Path, limits: Mapping[str, Any], *, per_task: bool) -> None:
        values = []
        if cpu.CONTROLLER in self._controllers:
            values += cpu.values(limits)
        if memory.CONTROLLER in self._controllers:
            values += [pair for pair in memory.values(limits) if per_task or pair[0] != memory.OOM_GROUP_FILE]
        if pids.CONTROLLER in self._controllers:
            values += pids.values(limits)
        if io.CONTROLLER in self._controllers:
            values += io.values(limits, self._io_device)
        for name, value in values:
            if name == memory.SWAP_FILE and not (group / name).exists():
                continue  # a kernel that does not account swap has none to limit
            files.write(group / name, value)

    def _enable(self, no_device: str) -> dict[str, str]:
        """Turns on each controller down to the jobs; those that are missing, with the reason."""
        missing: dict[str, str] = {}
        offered = (files.read(self._place.base / "cgroup.controllers") or "").split()
        for name in CONTROLLERS:
            if name not in offered:
                missing[name] = f"the {name} controller is not delegated to {self._place.base}"
                continue
            try:
                self._enable_one(name)
            except OSError as error:
                missing[name] = f"the {name} controller could not be enabled: {error}"
        if "io" not in missing and no_device:
            missing["io"] = no_device
        return missing

    def _enable_one(self, name: str) -> None:
        for attempt in range(_EVACUATIONS):
            if not self._place.is_real_root:
                self._evacuate()
            try:
                for group in dict.fromkeys((self._place.base, self.root, self.jobs)):
                    files.write(group / "cgroup.subtree_control", f"+{name}")
                return
            except OSError as error:
                # A process was born in the base meanwhile (an exec into the container): move it too.
                if error.errno != errno.EBUSY or attempt == _EVACUATIONS - 1:
                    raise
                time.sleep(0.01)

    def _evacuate(self) -> None:
        """A group with controllers for its children may hold no process itself (no internal processes rule)."""
        alone = self.root == self._place.base
        refuge = self.init if alone else self._place.base / OUTSIDE
        refuge.mkdir(exist_ok=True)
        for pid in files.processes(self._place.base):
            if _is_kernel_thread(pid):
                continue  # moving one out of the root makes +cpu fail
            with contextlib.suppress(OSError):  # gone meanwhile, or seen next time
                files.write(refuge / "cgroup.procs", str(pid))

    def _favour_ourselves(self) -> None:
        for group in (self.init, self.supervisors):
            for name, value in ((cpu.WEIGHT_FILE, _OWN_WEIGHT), ("memory.low", _OWN_MEMORY_LOW)):
                if (group / name).exists():
                    files.write(group / name, value)

    def _let_starts_enter(self, group: Path) -> None:
        """A start with a task's uid must write here and in the common ancestor to be born in a leaf (clone3)."""
        if os.geteuid() == 0:
            os.chown(group / "cgroup.procs", -1, ENTRY_GID)
            os.chmod(group / "cgroup.procs", 0o664)


def _plus(controllers: Sequence[str]) -> str:
    return " ".join(f"+{name}" for name in controllers)


def _device_behind(directory: Path) -> tuple[str | None, str]:
    try:
        return device.block_device(directory), ""
    except device.NoDevice as error:
        return None, str(error)
    except OSError as error:
        return None, f"{directory}: {error.strerror}"


def _is_kernel_thread(pid: int) -> bool:
    try:
        os.readlink(f"/proc/{pid}/exe")
    except FileNotFoundError:
        return os.path.exists(f"/proc/{pid}")
    except OSError:
        return False
    return False


@contextlib.contextmanager
def _locked(base: Path) -> Iterator[None]:
    """One launcher at a time changes a base that several share."""
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_dead_trees(base: Path) -> None:
    """What a launcher that was killed has left: nobody is in its init/ any more, so nobody owns its tasks."""
    for tree in base.glob("jobcluster-*"):
        events = files.read(tree / "init" / "cgroup.events")
        if events is not None and not files.populated(events):
            with contextlib.suppress(OSError):
                _remove_tree(tree)


def _remove_tree(tree: Path) -> None:
    """Kills all that lives in a tree and removes it from its leaves up."""
    with contextlib.suppress(FileNotFoundError):
        files.write(tree / "cgroup.kill", "1")
    for directory, _, _ in os.walk(tree, topdown=False):
        remove_group(Path(directory), 2.0)
