"""Places as a container engine makes them, out of namespaces and groups alone; see container.sh. Stdlib only."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jobcluster_worker.cgroup.tree import CONTROLLERS

ROOT = Path("/sys/fs/cgroup")
_SCRIPT = Path(__file__).with_name("container.sh")
ALL = " ".join(f"+{name}" for name in CONTROLLERS)


def container(group: Path, cgroup_namespace: str = "private", more: str = "") -> list[str]:
    """What to put before a command, see container.sh."""
    return ["sh", str(_SCRIPT), str(group), cgroup_namespace, more]


@contextmanager
def container_group(name: str) -> Iterator[Path]:
    """A group like that of a container, with every controller; gone afterwards with all in it, as an engine does."""
    (ROOT / "cgroup.subtree_control").write_text(ALL)
    path = ROOT / f"ctr-{os.getpid()}-{name}"
    path.mkdir()
    try:
        yield path
    finally:
        (path / "cgroup.kill").write_text("1")
        for directory, _, _ in os.walk(path, topdown=False):
            with suppress(OSError):
                wait_empty(Path(directory))
                os.rmdir(directory)
    assert not path.exists()


def pod_group(group: Path) -> Path:
    """Where Kubernetes puts a container: below groups of its own, each with every controller."""
    pod = group / "kubepods" / "pod1"
    pod.mkdir(parents=True)
    for parent in (group, group / "kubepods", pod):
        (parent / "cgroup.subtree_control").write_text(ALL)
    return pod / "ctr"


def wait_empty(group: Path) -> None:
    while "populated 1" in (group / "cgroup.events").read_text():
        pass
