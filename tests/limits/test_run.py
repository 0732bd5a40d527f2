"""Where `make test-limits` runs natively, and where it boots a kernel of its own; on a real cgroup v2 kernel."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.limits.containers import ALL, container, container_group

SCRIPT = "from pathlib import Path; from tests.limits import run; print(run.native_scratch(Path({!r})))"
ENTER = 'echo 0 > {}/cgroup.procs && exec "$0" "$@"'


@pytest.fixture
def group() -> Iterator[Path]:
    with container_group("native") as path:
        yield path


def chosen(checkout: Path, wrapper: Sequence[str] = ()) -> str:
    """The directory in which it would run natively, or "None": it boots user-mode Linux then."""
    argv = [*wrapper, sys.executable, "-c", SCRIPT.format(str(checkout))]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(scratch: Path) -> Iterator[Path]:
    """On a disk."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix="checkout-") as name:
        yield Path(name)


def test_native_where_all_controllers_are_ours(checkout: Path, group: Path) -> None:
    found = [chosen(checkout)]
    (group / "cgroup.subtree_control").write_text(ALL)
    (group / "delegated").mkdir()
    os.setxattr(group / "delegated", "user.delegate", b"1")
    found.append(chosen(checkout, ["sh", "-c", ENTER.format(group / "delegated")]))
    assert all(Path(place).is_relative_to(checkout / "build") for place in found), found


def test_a_kernel_of_its_own_where_one_is_missing_or_none_is_ours(
    checkout: Path, group: Path, tmp_path: Path
) -> None:
    in_container = chosen(checkout, container(group))
    (group / "session").mkdir()
    in_session = ["sh", "-c", ENTER.format(group / "session")]
    plain = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    (group / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    (group / "half").mkdir()
    os.setxattr(group / "half", "user.delegate", b"1")
    found = {
        "a container": in_container,
        "a session that is not delegated": chosen(checkout, in_session),
        "a delegated group without io": chosen(checkout, ["sh", "-c", ENTER.format(group / "half")]),
        "a plain user": chosen(checkout, plain),
        "no disk below": chosen(tmp_path),
    }
    assert set(found.values()) == {"None"}, found
