"""Where a worker may find itself: containers of several kinds, sessions, delegated groups, after a crash."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobcluster_worker.cgroup.tree import CONTROLLERS

from tests.limits.containers import ROOT, container, container_group, pod_group, wait_empty

NewYard = Any  # conftest.py
LIMITS = {"cpu": 0.25, "memory_bytes": 64 << 20, "pids": 16, "io": {"write_bps": 1 << 20}}

ENTER = 'mkdir -p {group} && echo 0 > {group}/cgroup.procs && exec "$0" "$@"'


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[Path]:
    with container_group(str(abs(hash(request.node.name)))) as path:
        yield path


def check_a_task(yard: Any, group: Path) -> None:
    """A task's limits, as one outside of the container reads them, are those the worker tells."""
    started = yard.start("task", "/bin/sleep", "1000", limits=LIMITS)
    leaf = group / Path(started["leaf"]).relative_to(yard.hello["root"])
    assert (leaf / "cpu.max").read_text() == "25000 100000\n"
    assert (leaf / "memory.max").read_text() == f"{64 << 20}\n"
    assert (leaf / "pids.max").read_text() == "16\n"
    assert "wbps=1048576" in (leaf / "io.max").read_text()
    assert len((leaf / "cgroup.procs").read_text().split()) == 1
    yard.ask("signal", name="task", number=signal.SIGTERM)
    assert yard.ask("wait", name="task")["status"] == -signal.SIGTERM
    assert not leaf.exists()


def all_ok(yard: Any) -> bool:
    return all(said["ok"] for said in yard.hello["enforced"].values())


def test_a_container_with_a_private_cgroup_namespace(new_yard: NewYard, group: Path) -> None:
    with new_yard(wrapped=container(group)) as yard:
        assert all_ok(yard), yard.hello
        assert yard.hello["root"] == "/sys/fs/cgroup"
        assert yard.hello["own_cgroup"] == "0::/supervisors\n"
        assert (group / "cgroup.procs").read_text() == ""
        assert set((group / "cgroup.subtree_control").read_text().split()) == set(CONTROLLERS)
        check_a_task(yard, group)


def test_a_privileged_pod_has_the_hosts_namespace_and_makes_its_own(new_yard: NewYard, group: Path) -> None:
    pod = pod_group(group)
    before, mounts = set(ROOT.iterdir()), host_cgroup_mounts()
    with new_yard(wrapped=container(pod, "host")) as yard:
        assert all_ok(yard), yard.hello
        assert yard.hello["root"] == "/sys/fs/cgroup"
        assert yard.hello["own_cgroup"] == "0::/supervisors\n"
        assert (pod / "cgroup.procs").read_text() == ""
        check_a_task(yard, pod)
        assert set(ROOT.iterdir()) == before
        assert host_cgroup_mounts() == mounts


def host_cgroup_mounts() -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "cgroup2" in line]


def test_a_container_whose_first_process_is_another(new_yard: NewYard, group: Path) -> None:
    with new_yard(wrapped=container(group, more="init")) as yard:
        assert all_ok(yard), yard.hello
        assert (group / "cgroup.procs").read_text() == ""
        assert (group / "jobcluster-outside" / "cgroup.procs").read_text() != ""
        check_a_task(yard, group / Path(yard.hello["root"]).name)


def test_two_launchers_in_one_container_stand_side_by_side(new_yard: NewYard, group: Path) -> None:
    with new_yard(wrapped=container(group, more="init")) as first:
        inside = Path(f"/proc/{first.process.pid}/task/{first.process.pid}/children").read_text().strip()
        join = f"echo 0 > {group}/jobcluster-outside/cgroup.procs"
        join += f' && exec nsenter --target {inside} --pid --mount --cgroup "$0" "$@"'
        with new_yard(wrapped=["sh", "-c", join]) as second:
            for yard in (first, second):
                assert all_ok(yard), yard.hello
                check_a_task(yard, group / Path(yard.hello["root"]).name)


def test_a_controller_that_is_not_delegated_is_said_and_the_others_hold(
    new_yard: NewYard, group: Path
) -> None:
    (group / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    with new_yard(wrapped=container(group / "half")) as yard:
        enforced = yard.hello["enforced"]
        assert {name for name in enforced if enforced[name]["ok"]} == {"cpu", "memory", "pids"}
        assert "not delegated" in enforced["io"]["why"]
        started = yard.start("task", "/bin/sleep", "1000", limits=LIMITS)
        assert set(started["effective"]["io"].values()) == {None}
        assert started["effective"]["pids"] == 16
        yard.ask("signal", name="task", number=signal.SIGTERM)
        assert yard.ask("wait", name="task")["usage"]["io_write_bytes"] is None


def test_a_read_only_cgroup_file_system_gives_no_tree_and_says_why(new_yard: NewYard, group: Path) -> None:
    with new_yard(wrapped=container(group, more="mount -o remount,ro,bind /sys/fs/cgroup")) as yard:
        assert yard.hello["root"] is None
        assert "Read-only" in yard.hello["enforced"]["cpu"]["why"]


def test_a_session_that_is_not_delegated_is_left_alone_and_the_remedy_is_said(
    new_yard: NewYard, group: Path
) -> None:
    with new_yard(wrapped=["sh", "-c", ENTER.format(group=group / "session")]) as yard:
        assert yard.hello["root"] is None
        assert "Delegate=yes" in yard.hello["enforced"]["memory"]["why"]
        assert [path for path in (group / "session").iterdir() if path.is_dir()] == []


def test_a_delegated_group_is_used_by_two_workers_at_once(new_yard: NewYard, group: Path) -> None:
    enter = ["sh", "-c", ENTER.format(group=group)]
    os.setxattr(group, "user.delegate", b"1")
    with new_yard(wrapped=enter) as first:
        again = ["sh", "-c", ENTER.format(group=group / "jobcluster-outside")]
        with new_yard(wrapped=again) as second:
            for yard in (first, second):
                assert all_ok(yard), yard.hello
                check_a_task(yard, group / Path(yard.hello["root"]).name)
            assert first.hello["root"] != second.hello["root"]
    assert [path.name for path in group.iterdir() if path.is_dir()] == ["jobcluster-outside"]


def test_a_plain_user_with_a_delegated_group_has_limits_too(new_yard: NewYard, group: Path) -> None:
    os.setxattr(group, "user.delegate", b"1")
    for path in (
        group,
        *(group / name for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")),
    ):
        os.chown(path, 65534, 65534)
    enter = ["sh", "-c", ENTER.format(group=group)]
    with new_yard(wrapped=enter, env={**os.environ, "YARD_UID": "65534"}) as yard:
        assert all_ok(yard), yard.hello
        assert yard.hello["confinement"]["own uid, no capabilities"].startswith("no")
        check_a_task(yard, group / Path(yard.hello["root"]).name)
        yard.start("killed", "/bin/sleep", "1000")
        yard.ask("signal", name="killed", number=signal.SIGKILL)
        assert yard.ask("wait", name="killed")["status"] == -signal.SIGKILL


def test_what_a_killed_launcher_left_is_removed_by_the_next(new_yard: NewYard) -> None:
    with new_yard() as yard:
        started = yard.start("orphan", "/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
        yard.process.kill()
        yard.process.wait(10)
        assert Path(started["leaf"]).exists()
        wait_empty(Path(yard.hello["root"]) / "init")
        with new_yard() as following:
            assert not Path(yard.hello["root"]).exists()
            assert not Path(f"/proc/{started['pid']}").exists()
            following.run("task", "/bin/true")
