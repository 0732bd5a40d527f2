"""A task is in its leaf from its first instruction, under the limits it was given, and leaves nothing."""

import ctypes
import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

LIMITS = {
    "cpu": 0.5,
    "memory_bytes": 64 << 20,
    "pids": 32,
    "io": {"read_bps": 8 << 20, "write_bps": 2 << 20, "read_iops": 1000, "write_iops": 500},
}
Yard = Any  # conftest.py


def test_all_is_enforced_on_this_kernel(yard: Yard) -> None:
    assert all(said["ok"] for said in yard.hello["enforced"].values()), yard.hello["enforced"]


def test_the_supervisor_is_in_its_own_group_and_never_in_a_leaf(yard: Yard) -> None:
    assert yard.hello["own_cgroup"].strip().endswith("/supervisors")
    yard.run("own", "/bin/true")
    own = Path(f"/proc/{yard.hello['pid']}/cgroup").read_text()
    assert own == yard.hello["own_cgroup"]


def test_effective_is_what_an_outsider_reads_while_the_task_runs_and_does_not_change(yard: Yard) -> None:
    started = yard.start("held", "/bin/sleep", "1000", limits=LIMITS)
    leaf = Path(started["leaf"])
    held = {
        name: (leaf / name).read_text()
        for name in ("cpu.max", "memory.max", "memory.swap.max", "pids.max", "io.max")
    }
    assert held["cpu.max"] == "50000 100000\n"
    assert held["memory.max"] == f"{64 << 20}\n"
    assert held["memory.swap.max"] == "0\n"
    assert held["pids.max"] == "32\n"
    assert held["io.max"].split(" ", 1)[1] == "rbps=8388608 wbps=2097152 riops=1000 wiops=500\n"
    assert started["effective"] == {**LIMITS, "oom": "group"}
    assert (leaf / "cgroup.procs").read_text().split() == [str(started["pid"])]
    assert {name: (leaf / name).read_text() for name in held} == held
    yard.ask("signal", name="held", number=signal.SIGTERM)
    assert yard.ask("wait", name="held")["status"] == -signal.SIGTERM


def test_the_first_act_of_a_task_is_in_its_leaf(yard: Yard, limits_n: int) -> None:
    for number in range(limits_n):
        done = yard.run(
            f"first{number}", "/bin/sh", "-c", "read g < /proc/self/cgroup; (cat /proc/self/cgroup); echo $g"
        )
        leaf = done["leaf"].removeprefix("/sys/fs/cgroup")
        assert done["output"].splitlines() == [f"0::{leaf}"] * 2


def test_a_task_has_no_rights_and_its_own_uid(yard: Yard) -> None:
    text = yard.run("rights", "/bin/cat", "/proc/self/status")["output"]
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    assert len(set(status["Uid"].split() + status["Gid"].split())) == 1
    assert int(status["Uid"].split()[0]) > 100_000
    assert status["Groups"] == ""
    assert [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 5
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_threads_start_and_clone3_does_not_exist_in_a_task(yard: Yard) -> None:
    script = """
import ctypes, threading
threading.Thread(target=print, args=("thread",)).start()
libc = ctypes.CDLL(None, use_errno=True)
arguments = (ctypes.c_uint64 * 11)(0x10000000)  # CLONE_NEWUSER
print(libc.syscall(435, ctypes.byref(arguments), 88), ctypes.get_errno())
"""
    output = yard.python("clone3", script)["output"].split()
    assert sorted(output) == sorted(["thread", "-1", str(errno.ENOSYS)])


def test_a_task_cannot_let_clone3_through_with_a_filter_and_listener_of_its_own(yard: Yard) -> None:
    script = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
code = struct.pack("<HBBI", 6, 0, 0, 0x7fff0000)
buffer = ctypes.create_string_buffer(code, 8)
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))
program = Program(1, ctypes.addressof(buffer))
for flags in (0, 8):
    print(libc.syscall(317, 1, flags, ctypes.byref(program)), ctypes.get_errno())
"""
    assert yard.python("filter", script)["output"].splitlines() == ["0 0", f"-1 {errno.EPERM}"]


HALF_WAY: dict[str, tuple[dict[str, Any], tuple[int, ...], str]] = {
    "a limit that the kernel refuses": ({"limits": {"memory_bytes": -2}}, (errno.EINVAL,), "memory.max"),
    "a leaf that has vanished": ({"vanish": True}, (errno.ENOENT, errno.ENODEV), ""),
    "a mount whose source is not there": (
        {"templates": "/no/such"},
        (errno.ENOENT,),
        "/run/jobcluster/templates",
    ),
    "a cwd that is not there": ({"cwd": "/no/such"}, (errno.ENOENT,), "cwd"),
    "root's uid": ({"uid": 0}, (errno.EPERM,), "uid"),
    "no uid": ({"uid": None}, (errno.EPERM,), "uid"),
    "a uid that would change nothing": ({"uid": -1}, (errno.EPERM,), "uid"),
}


@pytest.mark.parametrize("clone3", ["there", "refused"])
def test_a_start_that_fails_half_way_runs_nothing_and_leaves_nothing(new_yard: Any, clone3: str) -> None:
    environment = {**os.environ, "YARD_CLONE3": "none" if clone3 == "refused" else ""}
    with new_yard(env=environment) as yard:
        yard.run("warm", "/bin/true")
        before = yard.ask("count")
        for name, (options, errors, text) in HALF_WAY.items():
            answer = yard.start(name.replace(" ", "-"), "/bin/sh", "-c", "echo ran", **options)
            assert answer.get("errno") in errors, (name, answer)
            assert text in answer["text"], name
            assert yard.counts_as(before), (name, yard.ask("count"))
        outputs = {path.name: path.read_text() for path in Path(yard.hello["data"]).glob("*.output")}
        assert len(outputs) == len(HALF_WAY) and set(outputs.values()) == {""}, outputs


def test_an_exec_that_fails_in_the_leaf_is_told_by_its_errno(yard: Yard) -> None:
    before = yard.ask("count")
    assert yard.start("none", "/no/such/program")["errno"] == errno.ENOENT
    assert yard.start("denied", "/etc/passwd")["errno"] == errno.EACCES
    assert yard.start("cwd", "/bin/true", cwd="/no/such/cwd")["errno"] == errno.ENOENT
    assert yard.counts_as(before), yard.ask("count")


def test_many_tasks_leave_no_group_mount_descriptor_or_thread(yard: Yard, limits_n: int) -> None:
    yard.run("warm", "/bin/true", limits=LIMITS)
    before = yard.ask("count")
    for number in range(3 * limits_n):
        assert yard.run(f"many{number}", "/bin/true", limits=LIMITS)["status"] == 0
    assert yard.counts_as(before), yard.ask("count")


def test_tasks_of_one_job_share_a_group_that_goes_with_the_last(yard: Yard) -> None:
    for rank in range(3):
        yard.start(f"shared.{rank}", "/bin/sleep", "1000")
    assert yard.ask("count")["groups"] == ["shared", "shared/0.1", "shared/1.1", "shared/2.1"]
    for rank in range(3):
        yard.ask("signal", name=f"shared.{rank}", number=signal.SIGTERM)
        yard.ask("wait", name=f"shared.{rank}")
    assert yard.ask("count")["groups"] == []


def test_an_attempt_has_one_leaf_only(yard: Yard) -> None:
    yard.start("once", "/bin/sleep", "1000")
    assert yard.start("once", "/bin/true")["errno"] == errno.EEXIST
    yard.ask("signal", name="once", number=signal.SIGKILL)
    assert yard.ask("wait", name="once")["status"] == -signal.SIGKILL


NASTY = {
    "setsid": "setsid sleep 1000 & exit 0",
    "double fork": "(sleep 1000 &) & exit 0",
    "nohup": "nohup sleep 1000 >/dev/null 2>&1 & exit 0",
    "ignored term": "trap '' TERM; (trap '' TERM; while :; do sleep 0.2; done) & while :; do sleep 0.2; done",
    "fork storm": "f() { f | f & }; f; sleep 1000",
}


def test_the_kill_of_a_leaf_takes_the_nastiest_tree(yard: Yard) -> None:
    for number, script in enumerate(NASTY.values()):
        name = f"nasty{number}"
        started = yard.start(name, "/bin/sh", "-c", script, limits={"pids": 64})
        yard.ask("signal", name=name, number=signal.SIGTERM)
        yard.ask("signal", name=name, number=signal.SIGKILL)
        yard.ask("wait", name=name)
        assert not Path(started["leaf"]).exists()
    assert yard.ask("count")["groups"] == []


def test_the_fast_way_into_a_leaf_is_taken_where_the_c_library_has_it(yard: Yard) -> None:
    yard.run("fast", "/bin/true")
    assert yard.ask("hello")["fast"] == hasattr(ctypes.CDLL(None), "posix_spawnattr_setcgroup_np")


def test_where_clone3_is_refused_from_outside_tasks_start_the_other_way(new_yard: Any) -> None:
    with new_yard(env={**os.environ, "YARD_CLONE3": "none"}) as yard:
        before = yard.ask("count")
        assert yard.start("none", "/no/such/program")["errno"] == errno.ENOENT
        for name in ("first", "second"):
            done = yard.run(name, "/bin/cat", "/proc/self/cgroup")
            assert done["output"].strip().endswith(f"/jobs/{name}/0.1")
        assert not yard.ask("hello")["fast"]
        assert yard.counts_as(before), yard.ask("count")
